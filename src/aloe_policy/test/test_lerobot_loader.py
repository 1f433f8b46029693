"""LeRobot itself reads the datasets we write. Runs where the package `lerobot` is installed (Python 3.12 or newer), is skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="LeRobot is not installed here", exc_type=ImportError)
pytest.importorskip("av")

from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe_core.bag_reader import EpisodeRecord, read_episode
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Source
from aloe_policy.lerobot_dataset.bags import from_lerobot
from aloe_policy.lerobot_dataset.export import to_lerobot

ROBOT = load_robot("aloha_sim")
CAMERAS = tuple(c.name for c in ROBOT.cameras)[:2]
STEPS = (30, 17, 24)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeRecord]:
    root = tmp_path_factory.mktemp("bags")
    for i, steps in enumerate(STEPS):
        SyntheticEpisode(ROBOT, steps, seed=i, cameras=CAMERAS, human=(4, 9), outcome=Outcome(1 + i % 2)).write(
            root / f"e{i}"
        )
    return [read_episode(root / f"e{i}") for i in range(len(STEPS))]


@pytest.fixture(scope="module")
def root(records: list[EpisodeRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "d"
    to_lerobot([r.folder for r in records], folder, "someone/d", advantages={"e1": np.arange(17.0)})
    return folder


def test_every_frame_is_what_the_bag_holds(records: list[EpisodeRecord], root: Path) -> None:
    dataset = LeRobotDataset("someone/d", root=root, video_backend="pyav")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, sum(STEPS), 50)
    assert set(dataset.meta.camera_keys) == {f"observation.images.{c}" for c in CAMERAS}
    index = 0
    for number, record in enumerate(records):
        for t in range(len(record)):
            item = dataset[index]
            assert int(item["episode_index"]) == number
            assert int(item["frame_index"]) == t
            assert item["task"] == "do it"
            np.testing.assert_array_equal(item["observation.state"], record.state[t])
            np.testing.assert_array_equal(item["action"], record.executed[t])
            np.testing.assert_array_equal(item["aloe.proposal"], record.proposal[t])
            np.testing.assert_array_equal(item["aloe.source"], record.source[t])
            np.testing.assert_array_equal(item["aloe.sim_state"], record.sim_state[t])
            assert int(item["aloe.stamp_ns"]) == record.stamps_ns[t]
            assert int(item["aloe.intervention_id"]) == record.intervention_id[t]
            assert int(item["aloe.outcome"]) == record.outcome
            assert float(item["next.reward"]) == record.reward[t]
            assert bool(item["next.done"]) == (t == len(record) - 1)
            assert np.isnan(float(item["aloe.advantage"])) if number != 1 else float(item["aloe.advantage"]) == t
            for camera in CAMERAS:
                image = item[f"observation.images.{camera}"].numpy().transpose(1, 2, 0) * 255
                assert np.abs(image - record.image(camera, t)).max() <= 4
            index += 1


def test_action_chunks_are_padded_at_the_end_of_an_episode(records: list[EpisodeRecord], root: Path) -> None:
    deltas = {"action": [k / 50 for k in range(10)]}
    dataset = LeRobotDataset("someone/d", root=root, video_backend="pyav", delta_timestamps=deltas)
    item = dataset[STEPS[0] + 12]  # tick 12 of the second episode: 5 rows are left
    np.testing.assert_array_equal(item["action"][:5], records[1].executed[12:])
    assert item["action_is_pad"].tolist() == [False] * 5 + [True] * 5


def test_single_episodes_and_statistics(records: list[EpisodeRecord], root: Path) -> None:
    dataset = LeRobotDataset("someone/d", root=root, episodes=[2], video_backend="pyav")
    assert len(dataset) == STEPS[2]
    np.testing.assert_array_equal(dataset[3]["action"], records[2].executed[3])
    executed = np.concatenate([r.executed for r in records]).astype(np.float64)
    np.testing.assert_allclose(dataset.meta.stats["action"]["mean"], executed.mean(0), rtol=1e-9)
    np.testing.assert_allclose(dataset.meta.stats["action"]["std"], executed.std(0), rtol=1e-9)
    assert dataset.meta.stats[f"observation.images.{CAMERAS[0]}"]["mean"].shape == (3, 1, 1)


def test_what_lerobot_writes_becomes_bags(tmp_path: Path) -> None:
    vector = {"dtype": "float32", "shape": (ROBOT.action_dim,), "names": list(ROBOT.action_names)}
    key = f"observation.images.{CAMERAS[0]}"
    features = {"observation.state": vector, "action": vector}
    features[key] = {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create("someone/theirs", 50, features, root=tmp_path / "theirs", use_videos=True)
    rng = np.random.default_rng(0)
    states = rng.uniform(0, 1, (2, 9, ROBOT.action_dim)).astype(np.float32)
    for i in range(2):
        for t in range(9):
            image = np.full((64, 96, 3), 20 * t + 10 * i, np.uint8)
            frame = {"observation.state": states[i, t], "action": states[i, t] + 1, key: image, "task": f"task {i}"}
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    assert from_lerobot(tmp_path / "theirs", tmp_path / "bags", ROBOT) == 2
    for i in range(2):
        record = read_episode(tmp_path / f"bags/theirs-{i:06d}")
        np.testing.assert_array_equal(record.state, states[i])
        np.testing.assert_array_equal(record.executed, states[i] + 1)
        assert record.info.instruction == f"task {i}"
        assert (record.source == Source.HUMAN).all()
        for t in range(9):
            np.testing.assert_allclose(record.image(CAMERAS[0], t).mean(), 20 * t + 10 * i, atol=3)
