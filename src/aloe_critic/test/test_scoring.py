"""A critic that sees more than its policy: a policy without object state, improved on bags of the simulator, and everyone who asks the critic of it."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import replay_rig as rig
import torch

from aloe_core import topics
from aloe_core.chunk import ActionChunk
from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.messages import chunk_msg, joint_state_msg, ros_make, time_msg
from aloe_core.observation import Observation
from aloe_core.policy import load_policy
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_critic import improvement
from aloe_critic.best_of_n import BestOfN
from aloe_critic.critic_file import load_critic
from aloe_critic.improvement import ImproveConfig
from aloe_critic.learner import LearnerConfig
from aloe_critic.recording import Recording
from aloe_critic.rerun_export import judge_executed
from aloe_critic.scoring import ChunkScorer
from aloe_policy.training_state import random_numbers

ROBOT = rig.ROBOT
QUICK = ImproveConfig(
    critic={"width": 16, "layers": 1},
    learner=LearnerConfig(critic_steps=3, actor_steps=3, batch_size=8, policy_samples=2),
)
SEEN = Observation(0, ROBOT.home.astype(np.float32), object_state=np.linspace(0, 1, 7, dtype=np.float32))
UNSEEN = replace(SEEN, object_state=None)


@pytest.fixture(scope="module")
def improved(tmp_path_factory):
    """The first iteration of a policy without object state: `policy`, its critic, which looks at 7 numbers of it, and `best_of_n`; and the bags."""
    root = tmp_path_factory.mktemp("improved")
    for seed, outcome in enumerate((Outcome.SUCCESS, Outcome.FAILURE)):
        episode = SyntheticEpisode(ROBOT, steps=24, seed=seed, outcome=outcome, chunk_horizon=rig.HORIZON)
        episode.write(root / "bags" / f"e{seed}")
    policy = rig.save_policy(root / "policy", objects=0)
    store, _ = improvement.ingest(root / "run", [root / "bags"], policy, ROBOT)
    made = improvement.improve(root / "run", store, policy, ROBOT, QUICK)
    improvement.write_best_of_n(made, 3, ROBOT)
    assert load_critic(root / "run" / "001")[1].critic.object_dim == 7
    return root / "run" / "001", root / "bags"


def scorer_of(folder, **options):
    return ChunkScorer(folder, folder / "policy", ROBOT, **options)


def test_the_critic_sees_the_objects(improved):
    scorer = scorer_of(improved[0], samples=2)
    assert scorer.uses_task_state
    assert not load_policy(str(improved[0] / "policy"), ROBOT).uses_task_state
    chunk = np.tile(ROBOT.home, (rig.HORIZON, 1)).astype(np.float32)
    score = scorer.score(SEEN, chunk)
    with torch.no_grad():
        batch = {"state": SEEN.state, "object_state": SEEN.object_state, "action": chunk}
        heads = scorer.critic({key: torch.from_numpy(value)[None] for key, value in batch.items()})[0]
    assert score.q_heads == tuple(heads.tolist())
    elsewhere = replace(SEEN, object_state=SEEN.object_state + 1)
    assert scorer.score(elsewhere, chunk).q != score.q
    with pytest.raises(AloeError, match="looks at an object state of 7 numbers, the observation has none"):
        scorer.score(UNSEEN, chunk)
    with pytest.raises(AloeError, match="of 7 numbers, the observation has one of 6"):
        scorer.score(replace(SEEN, object_state=SEEN.object_state[:6]), chunk)


@pytest.mark.parametrize("bound", [True, False])
def test_values_are_bounded_where_the_method_bounds_them(tmp_path, bound):
    """Live as in the learner's report: an untrained critic's values lie outside of so small a range of returns."""
    policy = rig.save_policy(tmp_path / "policy")
    outside = (5.0, 6.0)
    folder = rig.save_toy_critic(tmp_path / "critic", "test", outside, {"bound_values": bound})
    chunk = np.tile(ROBOT.home, (rig.HORIZON, 1)).astype(np.float32)
    score = ChunkScorer(folder, policy, ROBOT, samples=4).score(SEEN, chunk, number=3)
    observed = {"state": torch.from_numpy(SEEN.state)[None], "object_state": torch.from_numpy(SEEN.object_state)[None]}
    repeated = {key: value.expand(4, -1) for key, value in observed.items()}
    own = load_policy(str(policy), ROBOT).policy.act(repeated, random_numbers(0, 3))
    rows = rig.CRITIC_HORIZON
    batch = {"action": torch.from_numpy(chunk)[None], "action_mask": torch.ones(1, rows, dtype=torch.bool)}
    expected = load_critic(folder)[0].evaluate({**observed, **batch, "policy_action": own[None, :, :rows]})
    found = {"q": score.q, "v": score.v, "advantage": score.advantage, "head_std": score.head_std}
    assert found == pytest.approx({key: float(value) for key, value in expected.items()}, abs=1e-6)
    assert min(score.q_heads) < outside[0]
    assert (score.q == score.v == outside[0]) == bound


def test_best_of_n_sees_them_too(improved):
    best = load_policy(str(improved[0] / "best_of_n"), ROBOT)
    assert best.uses_task_state
    chunk = best.propose(SEEN, np.random.default_rng(0))
    alone = load_policy(str(improved[0] / "policy"), ROBOT).policy
    noise = torch.Generator().manual_seed(int(np.random.default_rng(0).integers(2**63)))
    drawn = alone.act({"state": torch.from_numpy(SEEN.state).expand(3, -1)}, noise)
    assert any(np.array_equal(chunk, one.numpy()) for one in drawn)
    with pytest.raises(AloeError, match="needs an object state of 7 numbers, the observation has none"):
        best.propose(UNSEEN, np.random.default_rng(0))
    with pytest.raises(AloeError, match="looks at an object state of 7 numbers, the batch has none"):
        best.policy.act({"state": torch.from_numpy(SEEN.state)[None]}, torch.Generator())


def test_a_critic_and_a_policy_that_see_different_objects(improved, tmp_path):
    six = rig.save_policy(tmp_path / "six", objects=7)
    policy, _ = improvement.load_trainable(six, ROBOT)
    policy.spec = replace(policy.spec, object_dim=6)
    with pytest.raises(AloeError, match="the critic looks at 7 numbers of object state, the policy at 6"):
        BestOfN(policy, scorer_of(improved[0]).critic, 2)


@pytest.mark.parametrize("shown", ["policy", "best_of_n"])
def test_it_is_replayed(improved, tmp_path, shown):
    folder, bags = improved
    arguments = ["--policy", str(folder / shown), "--critic", str(folder), "--critic-policy", str(folder / "policy")]
    assert main(["replay", str(bags / "e0"), "--output", str(tmp_path / "out"), "--samples", "2", *arguments]) == 0
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["bags"][0]
    assert row["left_out"] == []
    assert row["values"]["proposed"]["chunks"] == row["values"]["recorded"]["chunks"] == row["proposals"] == 5


def test_a_bag_without_objects_is_replayed_without_values(improved, tmp_path, capsys):
    folder, _ = improved
    SyntheticEpisode(ROBOT, steps=24, object_size=0).write(tmp_path / "real")
    arguments = ["--policy", str(folder / "policy"), "--critic", str(folder)]
    assert main(["replay", str(tmp_path / "real"), "--output", str(tmp_path / "out"), *arguments]) == 0
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["bags"][0]
    assert (row["proposals"], row["values"]) == (5, {"recorded": None, "proposed": None})
    assert len(row["left_out"]) == 10
    assert "which the policy looks at" in row["left_out"][0]


def test_executed_actions_are_judged(improved):
    recording = Recording(improved[1] / "e1")
    judged = judge_executed(recording, scorer_of(improved[0], samples=2), every=1)
    recording.close()
    assert judged.shape == (24 - rig.HORIZON + 1, 4)
    assert np.isfinite(judged).all()


@pytest.mark.slow
def test_the_node_listens_to_the_objects_and_goes_on_without(improved, start_node):
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from sensor_msgs.msg import JointState

    from aloe_msgs.msg import ActionChunk as ActionChunkMsg
    from aloe_msgs.msg import CriticValue, TaskState

    folder = improved[0]
    parameters = {"critic": str(folder), "policy": str(folder / "policy"), "samples": 2, "max_wait": 1.0}
    critic = start_node("aloe_critic", "critic_node", parameters)
    rclpy.init()
    node = rclpy.create_node("witness")
    values = []
    node.create_subscription(CriticValue, topics.CRITIC_VALUE, values.append, 10)
    kinds = ((JointState, ROBOT.joint_states_topic), (TaskState, topics.TASK_STATE), (ActionChunkMsg, topics.CHUNK))
    joints, tasks, chunks = publishers = [node.create_publisher(kind, topic, 10) for kind, topic in kinds]

    def spin_until(condition):
        deadline = time.monotonic() + 100
        while not condition():
            assert time.monotonic() < deadline, critic.output
            rclpy.spin_once(node, timeout_sec=0.05)

    def ask(number, with_objects):
        stamp = 1_000_000_000 * number
        positions = np.tile(ROBOT.home, (rig.HORIZON, 1)).astype(np.float32)
        chunk = ActionChunk(stamp, positions, ROBOT.control_dt_ns, chunk_id=number, policy_version="test")
        joints.publish(joint_state_msg(ros_make, stamp, ROBOT.action_names, ROBOT.to_device(ROBOT.home)))
        if with_objects:
            task = TaskState(object_state=SEEN.object_state.tolist(), sim_state=[0.0])
            task.header.stamp = time_msg(ros_make, stamp)
            tasks.publish(task)
        chunks.publish(chunk_msg(ros_make, chunk, ROBOT))

    spin_until(
        lambda: all(p.get_subscription_count() for p in publishers) and node.count_publishers(topics.CRITIC_VALUE)
    )
    ask(1, with_objects=False)
    critic.wait_for("chunk 1 is not judged: no task state")
    ask(2, with_objects=True)
    spin_until(lambda: values)
    assert values[0].chunk_id == 2
    expected = scorer_of(folder, samples=2).score(SEEN, np.tile(ROBOT.home, (rig.HORIZON, 1)).astype(np.float32), 2)
    assert values[0].q == pytest.approx(expected.q, abs=1e-5)

    client = node.create_client(ChangeState, "critic_node/change_state")
    spin_until(client.service_is_ready)
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        spin_until(future.done)
        assert future.result().success
    spin_until(lambda: not node.count_publishers(topics.CRITIC_VALUE))  # else each cycle would leave one behind
    node.destroy_node()
    rclpy.shutdown()
    assert critic.stop() == 0
