"""What a policy sees live is, bit for bit, what the bag and the replay store hold: images, states, the task's privileged state."""

from pathlib import Path

import numpy as np
import pytest

from aloe_core.bag_reader import read_episode
from aloe_core.observation import Observation
from aloe_core.robot import load_robot
from aloe_core.vocabulary import Outcome
from aloe_policy.replay import ReplayStore
from aloe_robot.rollout import Lockstep

ROBOT = load_robot("aloha_sim")
CAMERAS = ("overhead", "left_wrist")
SIZE = (64, 64)


class Spy:
    """Wanders about and remembers every observation it was given."""

    version = "spy-0-00000000"
    horizon = 12
    cameras = CAMERAS
    image_size = SIZE
    uses_task_state = True

    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.chunks: list[np.ndarray] = []

    def propose(
        self,
        observation: Observation,
        generator: np.random.Generator,
        prefix: np.ndarray | None = None,
        prefix_steps: int = 0,
    ) -> np.ndarray:
        steps = 0.01 * generator.standard_normal((self.horizon, ROBOT.action_dim)).cumsum(axis=0)
        chunk = np.clip(observation.state + steps, ROBOT.position_min, ROBOT.position_max).astype(np.float32)
        self.seen.append(observation)
        self.chunks.append(chunk)
        return chunk


@pytest.mark.render
def test_live_bag_and_store_agree(tmp_path: Path) -> None:
    spy = Spy()
    rollout = Lockstep(ROBOT, "transfer_cube", spy).run(seed=3, time_limit=1.0, bags=tmp_path / "bags")
    assert rollout.bag is not None
    record = read_episode(rollout.bag, ROBOT)
    assert record.problems == []
    assert (record.outcome, len(record)) == (Outcome.TIMEOUT, 50)
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    ticks = {stamp: t for t, stamp in enumerate(record.stamps_ns.tolist())}
    assert len(spy.seen) >= 5
    for number, live in enumerate(spy.seen):
        t = ticks[live.stamp_ns]
        kept = store.observe(np.array([t]))
        np.testing.assert_array_equal(record.state[t], live.state)
        np.testing.assert_array_equal(kept["state"][0], live.state)
        np.testing.assert_array_equal(record.object_state[t], live.object_state)
        np.testing.assert_array_equal(kept["object_state"][0], live.object_state)
        np.testing.assert_array_equal(record.sim_state[t], live.sim_state)
        for camera in CAMERAS:
            np.testing.assert_array_equal(record.image(camera, t, SIZE), live.images[camera])
            np.testing.assert_array_equal(kept["images"][camera][0], live.images[camera])
            assert record.cameras[camera].stamps_ns[record.camera_index[camera][t]] == live.camera_stamps_ns[camera]
        np.testing.assert_array_equal(record.chunks[number].positions, spy.chunks[number])
        assert record.chunks[number].stamp_ns == live.stamp_ns
