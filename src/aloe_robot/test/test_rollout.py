import numpy as np
import pytest

from aloe_core.bag_reader import read_episode
from aloe_core.errors import AloeError
from aloe_core.policy import load_policy, request_generator
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome, Source, Termination
from aloe_robot.control.config import ControlConfig
from aloe_robot.rollout import START_NS, Lockstep


@pytest.fixture(scope="module")
def robot():
    return load_robot("aloha_sim")


@pytest.fixture(scope="module")
def scripted(robot):
    return Lockstep(robot, "transfer_cube", load_policy("scripted", robot), ControlConfig(execute_steps=50))


class Statue:
    """A policy that proposes to stay where the robot is."""

    version, horizon, cameras, image_size, uses_task_state = "statue", 10, (), None, False

    def propose(self, observation, generator, prefix=None, prefix_steps=0):
        return np.repeat(observation.state[None], self.horizon, 0)


def test_the_expert_succeeds_and_the_bag_tells_the_same_story(scripted, tmp_path):
    result = scripted.run(1, bags=tmp_path)
    assert result.success
    assert result.limited_ticks == 0  # the safety filter leaves clean demonstrations alone
    episode = read_episode(result.bag, scripted.robot)
    assert episode.problems == []
    assert (episode.outcome, episode.termination) == (Outcome.SUCCESS, Termination.TASK)
    assert len(episode) == result.steps
    assert episode.stamps_ns.tolist() == [START_NS + k * scripted.robot.control_dt_ns for k in range(result.steps)]
    assert (episode.source == Source.SCRIPTED).all()
    assert episode.reward.tolist() == [-1.0] * (result.steps - 1) + [0.0]
    assert episode.terminated.tolist() == [False] * (result.steps - 1) + [True]
    np.testing.assert_array_equal(episode.proposal, episode.executed)
    # Replaying what was executed from the same reset ends in the recorded last observation.
    env = scripted.env
    env.reset(1)
    for action in episode.executed:
        env.step(action.astype(np.float64))
    np.testing.assert_allclose(env.joint_positions(), episode.final_state, atol=1e-4)
    assert env.success


def test_a_seed_decides_the_episode_and_a_recording_changes_nothing(scripted, tmp_path):
    first, second = scripted.run(5), scripted.run(5, bags=tmp_path)
    assert (first.steps, first.outcome, first.max_jerk) == (second.steps, second.outcome, second.max_jerk)
    assert 0 < first.rms_jerk < first.max_jerk <= scripted.robot.max_jerk.max() * (1 + 1e-6)
    assert scripted.run(6).steps != first.steps


def test_nothing_recorded_is_overwritten(scripted, tmp_path):
    scripted.run(0, time_limit=0.1, bags=tmp_path)
    with pytest.raises(AloeError, match="exists already"):
        scripted.run(0, time_limit=0.1, bags=tmp_path)


def test_time_limit_is_a_truncation(robot, tmp_path):
    result = Lockstep(robot, "transfer_cube", Statue()).run(0, time_limit=1.0, bags=tmp_path)
    assert (result.outcome, result.steps, result.starved_ticks) == (Outcome.TIMEOUT, 50, 0)
    episode = read_episode(result.bag)
    assert episode.truncated[-1]
    assert not episode.terminated.any()
    assert episode.termination == Termination.TIME_LIMIT


def test_simulated_inference_takes_its_time(robot):
    late = Lockstep(robot, "transfer_cube", Statue(), ControlConfig(policy_latency=0.1))
    # The first chunk, asked for at tick 0, is due at tick 5. Its rows last to tick 9; the next is asked for at tick 10 and due at 15.
    assert late.run(0, time_limit=0.4).starved_ticks == 10


def test_a_robot_without_simulator_is_refused():
    with pytest.raises(AloeError, match="'bimanual_ur5e' has no simulator"):
        Lockstep(load_robot("bimanual_ur5e"), "transfer_cube", Statue())


def test_request_generator_depends_on_everything_it_is_given():
    draws = {request_generator(*key).integers(2**62) for key in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]}
    assert len(draws) == 4
    assert request_generator(0, "a", 1).integers(2**62) in draws
