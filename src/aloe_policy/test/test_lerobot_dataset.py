"""Bags -> LeRobotDataset -> bags keeps every number; bad datasets are refused with one sentence."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aloe_core.bag_labels import Label, append_label
from aloe_core.bag_reader import EpisodeRecord, read_episode
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Source

pa = pytest.importorskip("pyarrow", reason="LeRobotDatasets need pyarrow")
pytest.importorskip("av", reason="LeRobotDatasets need av")
pq = pytest.importorskip("pyarrow.parquet")

from aloe_policy.commands import lerobot as commands  # noqa: E402
from aloe_policy.lerobot_dataset import layout  # noqa: E402
from aloe_policy.lerobot_dataset.bags import from_lerobot  # noqa: E402
from aloe_policy.lerobot_dataset.export import to_lerobot  # noqa: E402
from aloe_policy.lerobot_dataset.statistics import QUANTILES, ImageStats, merge, vector_stats  # noqa: E402
from aloe_policy.lerobot_dataset.video import VideoWriter, read_frames  # noqa: E402

ROBOT = load_robot("aloha_sim")
CAMERAS = tuple(c.name for c in ROBOT.cameras)[:2]
ARRAYS = (
    *("step", "stamps_ns", "state", "executed", "proposal", "source", "fragment", "chunk_id", "chunk_step"),
    *("intervention_id", "reward", "terminated", "truncated", "safety_limited", "object_state", "sim_state"),
    *("final_state", "final_object_state"),
)


def write_bags(root: Path, steps: tuple[int, ...] = (40, 23)) -> list[Path]:
    folders = []
    for i, count in enumerate(steps):
        folder = root / f"episode-{i}"
        outcome = Outcome.SUCCESS if i % 2 == 0 else Outcome.UNLABELLED
        SyntheticEpisode(
            ROBOT, count, seed=i, cameras=CAMERAS, human=(5, 11), outcome=outcome, policy_version=f"run-{i}-0123abcd"
        ).write(folder)
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = write_bags(tmp_path_factory.mktemp("bags"))
    append_label(folders[1], Label(Outcome.FAILURE, 17, "ann", "dropped it"))
    return folders


@pytest.fixture(scope="module")
def dataset(bags: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / "cubes"
    advantages = {"episode-1": np.linspace(-1, 1, 23)}
    assert to_lerobot(bags, root, "someone/cubes", advantages=advantages) == 2
    return root


def assert_same(a: EpisodeRecord, b: EpisodeRecord) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in (
        "info",
        "outcome",
        "recorded_outcome",
        "termination",
        "label",
        "policy_version",
        "iterations",
        "events",
    ):
        assert getattr(a, name) == getattr(b, name), name
    assert a.final_stamp_ns == b.final_stamp_ns
    assert a.problems == b.problems == []
    assert len(a.chunks) == len(b.chunks) > 0
    for one, other in zip(a.chunks, b.chunks, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        for key in (
            "stamp_ns",
            "dt_ns",
            "chunk_id",
            "request_id",
            "policy_version",
            "inference_latency_s",
            "camera_stamps_ns",
        ):
            assert getattr(one, key) == getattr(other, key), key


def test_a_round_trip_keeps_every_number(bags: list[Path], dataset: Path, tmp_path: Path) -> None:
    assert from_lerobot(dataset, tmp_path / "back") == 2
    for folder in bags:
        one, other = read_episode(folder), read_episode(tmp_path / "back" / folder.name)
        assert_same(one, other)
        for camera in CAMERAS:
            stamps = [r.cameras[camera].stamps_ns[r.camera_index[camera]] for r in (one, other)]
            np.testing.assert_array_equal(*stamps)
            for t in range(len(one) + 1):
                gap = one.image(camera, t).astype(int) - other.image(camera, t)
                assert np.abs(gap).max() <= 4, (camera, t)


def test_the_columns_are_lerobots(bags: list[Path], dataset: Path) -> None:
    info = json.loads((dataset / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (50, 2, 63, 1)
    assert info["features"]["observation.state"]["names"] == list(ROBOT.action_names)
    assert info["features"][f"observation.images.{CAMERAS[0]}"]["shape"] == [48, 64, 3]
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet").to_pydict()
    assert table["frame_index"] == [*range(40), *range(23)]
    assert table["index"] == list(range(63))
    np.testing.assert_array_equal(np.float32(table["timestamp"]), np.float32(np.array(table["frame_index"]) / 50))
    assert [t for t, done in enumerate(table["next.done"]) if done] == [39, 62]
    second = read_episode(bags[1])
    np.testing.assert_array_equal(np.float32(table["action"][40:]), second.executed)
    assert [int(Source.HUMAN), int(Source.POLICY)] == [table["aloe.source"][45][0], table["aloe.source"][52][0]]
    assert np.isnan(table["aloe.advantage"][:40]).all()
    np.testing.assert_allclose(table["aloe.advantage"][40:], np.linspace(-1, 1, 23), rtol=1e-6)
    assert set(table["aloe.outcome"][40:]) == {int(Outcome.FAILURE)}  # the label counts
    versions = json.loads((dataset / "meta/aloe.json").read_text())["policy_versions"]
    assert versions[table["aloe.policy_version"][50]] == "run-1-0123abcd"


def test_the_episode_table_says_where_everything_is(dataset: Path) -> None:
    rows = pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = f"videos/observation.images.{CAMERAS[0]}"
    assert [(r["dataset_from_index"], r["dataset_to_index"], r["length"]) for r in rows] == [(0, 40, 40), (40, 63, 23)]
    assert [(r[f"{key}/from_timestamp"], r[f"{key}/to_timestamp"]) for r in rows] == [(0.0, 0.8), (0.8, 1.26)]
    assert np.shape(rows[0][f"stats/observation.images.{CAMERAS[0]}/mean"]) == (3, 1, 1)
    assert rows[0]["stats/aloe.advantage/mean"] is None  # nothing finite to average


def test_dataset_statistics_are_those_of_all_frames(bags: list[Path], dataset: Path) -> None:
    stats = json.loads((dataset / "meta/stats.json").read_text())
    records = [read_episode(b) for b in bags]
    executed = np.concatenate([r.executed for r in records]).astype(np.float64)
    for key, expected in (("mean", executed.mean(0)), ("std", executed.std(0)), ("min", executed.min(0))):
        np.testing.assert_allclose(stats["action"][key], expected, rtol=1e-9)
    halves = [np.quantile(r.executed.astype(np.float64), 0.99, axis=0) for r in records]
    np.testing.assert_allclose(stats["action"]["q99"], (40 * halves[0] + 23 * halves[1]) / 63, rtol=1e-9)
    greys = np.concatenate([[r.image(CAMERAS[0], t).mean() / 255 for t in range(len(r))] for r in records])
    np.testing.assert_allclose(np.ravel(stats[f"observation.images.{CAMERAS[0]}"]["mean"]), greys.mean(), atol=1e-6)


def test_image_statistics_are_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (5, 8, 6, 3), dtype=np.uint8)
    collected = ImageStats()
    for image in images:
        collected.add(image)
    stats, pixels = collected.stats(), images.reshape(-1, 3) / 255
    for key, expected in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        np.testing.assert_allclose(stats[key].reshape(3), expected, rtol=1e-12)
    for key, q in QUANTILES.items():
        expected = np.quantile(pixels, q, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(stats[key].reshape(3), expected, rtol=1e-12)


def test_merging_statistics_is_pooling_the_data() -> None:
    values = np.random.default_rng(1).normal(3, 2, (50, 4))
    merged = merge(vector_stats(values[:13]), vector_stats(values[13:]))
    for key in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(merged[key], vector_stats(values)[key], rtol=1e-12)


def test_frames_are_found_in_the_middle_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path, (32, 48), 50)
    levels = [(5 * i) % 250 for i in range(300)]
    for level in levels:
        writer.add(np.full((32, 48, 3), level, np.uint8))
    writer.close()
    for start in (0, 1, 137, 290):
        found = [frame.mean() for frame in read_frames(path, start / 50, 10, 50)]
        np.testing.assert_allclose(found, levels[start : start + 10], atol=2)
    with pytest.raises(AloeError, match="frame 5 of 6"):
        list(read_frames(path, 295 / 50, 6, 50))


def test_full_files_are_followed_by_new_ones(bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "DATA_FILE_MB", 0)
    monkeypatch.setattr(layout, "VIDEO_FILE_MB", 0)
    monkeypatch.setattr(layout, "CHUNKS_SIZE", 1)
    to_lerobot(bags, tmp_path / "d", "a/b")
    assert len(list((tmp_path / "d/data").glob("chunk-00[01]/file-000.parquet"))) == 2
    assert len(list((tmp_path / "d/meta/episodes").glob("chunk-00[01]/file-000.parquet"))) == 2
    assert len(list((tmp_path / "d/videos").glob("*/chunk-00[01]/file-000.mp4"))) == 4
    from_lerobot(tmp_path / "d", tmp_path / "back")
    for folder in bags:
        assert_same(read_episode(folder), read_episode(tmp_path / "back" / folder.name))


def test_memory_does_not_grow_with_the_number_of_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aloe_policy.lerobot_dataset.files.EPISODES_PER_ROW_GROUP", 2)
    monkeypatch.setattr("aloe_policy.lerobot_dataset.files.EPISODES_PER_FILE", 3)

    def peak(count: int) -> int:
        folders = write_bags(tmp_path / f"bags-{count}", (8,) * count)
        tracemalloc.start()
        to_lerobot(folders, tmp_path / f"d-{count}", "a/b")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(4)  # what is loaded once, a second file included
    few = peak(8)
    assert peak(32) < 1.4 * few  # a fifth of it is when the collector runs


def test_nothing_is_overwritten(bags: list[Path], dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="exists already"):
        to_lerobot(bags, dataset, "a/b")
    from_lerobot(dataset, tmp_path)
    with pytest.raises(AloeError, match="exists already"):
        from_lerobot(dataset, tmp_path)


def test_a_failed_export_leaves_nothing_behind(bags: list[Path], tmp_path: Path) -> None:
    SyntheticEpisode(ROBOT, 10, cameras=CAMERAS[:1]).write(tmp_path / "bags" / "other")
    with pytest.raises(AloeError, match="other has other cameras"):
        to_lerobot([*bags, tmp_path / "bags"], tmp_path / "d", "a/b")
    assert [p.name for p in tmp_path.iterdir()] == ["bags"]
    with pytest.raises(AloeError, match="5 advantages for 40 steps"):
        to_lerobot(bags, tmp_path / "d", "a/b", advantages={"episode-0": np.zeros(5)})


def foreign(dataset: Path, root: Path) -> Path:
    """The same data as somebody else would have recorded it."""
    shutil.copytree(dataset, root)
    shutil.rmtree(root / "aloe")
    (root / "meta/aloe.json").unlink()
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {k: v for k, v in info["features"].items() if not k.startswith("aloe.")}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_a_dataset_of_others_becomes_demonstrations(bags: list[Path], dataset: Path, tmp_path: Path) -> None:
    root = foreign(dataset, tmp_path / "theirs")
    with pytest.raises(AloeError, match="name the robot"):
        from_lerobot(root, tmp_path / "bags")
    assert from_lerobot(root, tmp_path / "bags", ROBOT) == 2
    record, original = read_episode(tmp_path / "bags/theirs-000001"), read_episode(bags[1])
    np.testing.assert_array_equal(record.state, original.state)
    np.testing.assert_array_equal(record.executed, original.executed)
    assert (record.source == Source.HUMAN).all()
    assert (record.intervention_id == 1).all()
    assert np.isnan(record.proposal).all()
    assert record.outcome == Outcome.UNLABELLED
    assert record.info.instruction == "do it"
    assert np.abs(record.image(CAMERAS[1], 9).astype(int) - original.image(CAMERAS[1], 9)).max() <= 4


def edit_features(root: Path, key: str, shape: list[int] | None) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    feature = info["features"].pop(key)
    if shape is not None:
        info["features"][key] = feature | {"shape": shape}
    (root / "meta/info.json").write_text(json.dumps(info))


def in_tables(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][f"observation.images.{CAMERAS[1]}"]["dtype"] = "image"
    (root / "meta/info.json").write_text(json.dumps(info))


def edit_column(root: Path, key: str, value: int) -> None:
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    changed = pa.array([value] * len(table), pa.int64())
    pq.write_table(table.set_column(table.column_names.index(key), key, changed), file)


def edit(file: Path, change: dict) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "meta/info.json").unlink(), "not a LeRobotDataset"),
        (lambda d: (d / "meta/info.json").write_text("{"), "not JSON"),
        (lambda d: edit(d / "meta/info.json", {"codebase_version": "v2.1"}), "format v2.1"),
        (lambda d: edit(d / "meta/info.json", {"fps": 30}), "30 frames per second"),
        (lambda d: edit(d / "meta/info.json", {"fps": None}), "fps or features"),
        (lambda d: edit(d / "meta/info.json", {"data_path": "../../{chunk_index}"}), "data_path"),
        (lambda d: edit(d / "meta/aloe.json", {"robot_hash": "x"}), "hash x"),
        (lambda d: edit(d / "meta/aloe.json", {"format": 99}), "format 99"),
        (lambda d: (d / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1"), "file-000.parquet: not readable"),
        (lambda d: next(d.rglob("*.mp4")).write_bytes(b"no video"), "not a readable video"),
        (lambda d: shutil.rmtree(d / "videos"), "not a readable video"),
        (
            lambda d: (d / "aloe/chunks/chunk-000/file-000.parquet").unlink(),
            "chunks/chunk-000/file-000.parquet: not readable",
        ),
        (lambda d: pq.write_table(pa.table({"a": [1]}), d / "aloe/chunks/chunk-000/file-000.parquet"), "other columns"),
        (lambda d: edit_features(d, "aloe.step", None), "'aloe.step' is missing"),
        (lambda d: edit_features(d, "aloe.source", [5]), "'aloe.source' is missing or not int64"),
        (lambda d: edit_features(d, "aloe.image_stamp_ns", None), "not of the cameras"),
        (in_tables, f"feature 'observation.images.{CAMERAS[1]}' holds images inside the tables"),
        (lambda d: edit_column(d, "aloe.chunk_id", -1), "'aloe.chunk_id' is not whole numbers"),
        (lambda d: edit_column(d, "aloe.fragment", 2**40), "'aloe.fragment' is not whole numbers"),
    ],
)
def test_a_damaged_dataset_is_refused(dataset: Path, tmp_path: Path, damage, message: str) -> None:
    copy = tmp_path / "d"
    shutil.copytree(dataset, copy)
    damage(copy)
    with pytest.raises(AloeError, match=message):
        from_lerobot(copy, tmp_path / "bags")
    assert not list(tmp_path.glob("bags/*"))


def test_images_inside_the_tables_of_others_are_refused(dataset: Path, tmp_path: Path) -> None:
    root = foreign(dataset, tmp_path / "theirs")
    in_tables(root)
    with pytest.raises(AloeError, match=r"'observation.images.\w+' holds images inside .* convert it to video"):
        from_lerobot(root, tmp_path / "bags", ROBOT)


def test_an_episode_that_breaks_off_leaves_no_bag(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d"
    shutil.copytree(dataset, copy)
    video = next(copy.rglob("*.mp4"))
    frames = list(read_frames(video, 0.0, 50, 50))  # of 40 + 23
    writer = VideoWriter(video, frames[0].shape[:2], 50)
    for frame in frames:
        writer.add(frame)
    writer.close()
    with pytest.raises(AloeError, match="frame 10 of 23"):
        from_lerobot(copy, tmp_path / "bags")
    assert [p.name for p in (tmp_path / "bags").iterdir()] == ["episode-0"]
    assert read_episode(tmp_path / "bags/episode-0").problems == []


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("info", json.dumps({"episode_id": "../../evil"}), "not a plain name"),
        ("info", "[", "Invalid JSON"),
        ("outcome", "splendid", "splendid"),
        ("events", ["[1, 2]"], "event"),
        ("events", ['[1, 77, 0, 0, ""]'], "event"),
        ("iterations", "[1]", "iterations"),
        ("labels", ['["splendid", 1, "", ""]'], "label"),
        ("labels", ["{}"], "label"),
    ],
)
def test_a_strangers_table_cannot_do_harm(dataset: Path, tmp_path: Path, column: str, value, message: str) -> None:
    copy = tmp_path / "d"
    shutil.copytree(dataset, copy)
    file = copy / "aloe/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, layout.ALOE_EPISODES), file)
    with pytest.raises(AloeError, match=message):
        from_lerobot(copy, tmp_path / "bags")
    assert not (tmp_path / "evil").exists()
    assert not list(tmp_path.glob("bags/*"))


def test_the_commands(bags: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", **{"episode-0": np.arange(40.0)})
    dataset = tmp_path / "d"
    assert commands.to_lerobot(tuple(bags), output=dataset, repo_id="a/b", advantages=tmp_path / "a.npz") == 0
    assert commands.from_lerobot(dataset, output=tmp_path / "back") == 0
    assert "2 bags in" in capsys.readouterr().out
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet").to_pydict()
    assert table["aloe.advantage"][:40] == list(range(40))
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(AloeError, match="not a readable NPZ"):
        commands.to_lerobot(tuple(bags), output=tmp_path / "e", repo_id="a/b", advantages=tmp_path / "b.npz")
