"""Bags into the store: incremental, idempotent, parallel, atomic, honest about what is left out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aloe_core.bag_labels import Label, append_label
from aloe_core.bag_reader import read_episode
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_policy.replay import ReplayStore, replay_report
from aloe_policy.replay import decode as decoding
from aloe_policy.replay.features import update_features
from aloe_policy.replay.layout import locked

ROBOT = load_robot("aloha_sim")
CAMERAS = ("overhead", "left_wrist")
SIZE = (16, 24)


def write_bags(folder: Path, count: int = 3, **options: object) -> list[SyntheticEpisode]:
    episodes = [SyntheticEpisode(ROBOT, steps=20 + k, seed=k, cameras=CAMERAS, **options) for k in range(count)]  # type: ignore[arg-type]
    for k, episode in enumerate(episodes):
        episode.write(folder / f"e{k}")
    return episodes


def snapshot(root: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(root.iterdir()) if f.is_file()}


@pytest.mark.parametrize("workers", [1, 2])
def test_store_holds_what_the_bags_hold(tmp_path: Path, workers: int) -> None:
    episodes = write_bags(tmp_path / "bags", human=(5, 9))
    store = ReplayStore(tmp_path / "store")
    report = store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE, workers=workers)
    assert (report.bags, report.added, report.episodes, report.left_out) == (3, 3, [0, 1, 2], [])
    assert (report.steps, store.rows) == (20 + 21 + 22, 63 + 3)
    for number, episode in enumerate(episodes):
        entry = store.episodes[number]
        record = read_episode(entry.bag, ROBOT)
        rows = np.arange(entry.start, entry.start + entry.steps + 1)
        seen = store.observe(rows)
        np.testing.assert_array_equal(seen["state"], [*record.state, record.final_state])
        np.testing.assert_array_equal(seen["object_state"], episode.objects)
        np.testing.assert_array_equal(seen["stamp_ns"], episode.stamps_ns)
        np.testing.assert_array_equal(seen["episode"], number)
        np.testing.assert_array_equal(store.arrays["action"][rows[:-1]], episode.executed)
        np.testing.assert_array_equal(store.arrays["source"][rows[:-1]], record.source)
        for camera in CAMERAS:
            expected = [record.image(camera, t, SIZE) for t in range(entry.steps + 1)]
            np.testing.assert_array_equal(seen["images"][camera], expected)
        assert entry.frames == dict.fromkeys(CAMERAS, entry.steps // 2 + 1)  # an image shown at two ticks is kept once


def test_ingest_is_idempotent_and_incremental(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bags(tmp_path / "bags", 2)
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    before = snapshot(store.root)

    def never(*args: object) -> None:
        raise AssertionError("a known bag was read again")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "content_hash", never)
        report = store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    assert (report.added, report.episodes) == (0, [0, 1])
    assert snapshot(store.root) == before

    SyntheticEpisode(ROBOT, steps=7, seed=9, cameras=CAMERAS).write(tmp_path / "bags" / "later")
    report = store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    assert (report.added, report.episodes, len(store.episodes)) == (1, [0, 1, 2], 3)
    for name, data in before.items():
        if name.endswith(".bin"):
            assert (store.root / name).read_bytes().startswith(data)  # appended, nothing moved

    moved = shutil.move(tmp_path / "bags" / "e0", tmp_path / "moved")
    report = store.ingest([moved], ROBOT, CAMERAS, SIZE)  # known by content, wherever it lies
    assert (report.added, report.episodes) == (0, [0])


def test_a_label_rewrites_only_the_labels(tmp_path: Path) -> None:
    write_bags(tmp_path / "bags", 2, outcome=Outcome.UNLABELLED)
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    assert store.outcome(1) == Outcome.UNLABELLED
    before = snapshot(store.root)
    append_label(tmp_path / "bags" / "e1", Label(Outcome.FAILURE, 1, "a"))
    append_label(tmp_path / "bags" / "e1", Label(Outcome.SUCCESS, 2, "b"))
    report = store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    assert (report.relabelled, report.added) == (1, 0)
    assert [store.outcome(e) for e in (0, 1)] == [Outcome.UNLABELLED, Outcome.SUCCESS]
    after = snapshot(store.root)
    assert {name for name in after if after[name] != before.get(name)} == {"labels.json"}
    (tmp_path / "bags" / "e1" / "labels.jsonl").unlink()
    assert store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE).relabelled == 1
    assert store.outcome(1) == Outcome.UNLABELLED


def test_bad_bags_among_good_ones_are_left_out_with_the_reason(tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    good = SyntheticEpisode(ROBOT, steps=8, cameras=CAMERAS)
    good.write(bags / "a_good")
    good.write(bags / "b_corrupt", "none")
    data = bytearray((bags / "b_corrupt" / "b_corrupt_0.mcap").read_bytes())
    data[len(data) // 2] ^= 1
    (bags / "b_corrupt" / "b_corrupt_0.mcap").write_bytes(data)
    shutil.copytree(bags / "a_good", bags / "c_duplicate")
    SyntheticEpisode(ROBOT, steps=8, seed=1, cameras=CAMERAS).write(bags / "d_killed", close=False)
    SyntheticEpisode(ROBOT, steps=8, seed=2, cameras=CAMERAS[:1]).write(bags / "e_one_camera")
    SyntheticEpisode(load_robot("bimanual_ur5e"), steps=8).write(bags / "f_other_robot")
    SyntheticEpisode(ROBOT, steps=8, seed=3, cameras=CAMERAS, object_size=3).write(bags / "g_other_objects")
    SyntheticEpisode(ROBOT, steps=0, seed=4, cameras=CAMERAS).write(bags / "h_no_transitions")
    SyntheticEpisode(ROBOT, steps=8, seed=6, cameras=CAMERAS).write(bags / "i_bad_label")
    (bags / "i_bad_label" / "labels.jsonl").write_text("success\n")
    SyntheticEpisode(ROBOT, steps=8, seed=5, cameras=CAMERAS).write(bags / "z_good")
    store = ReplayStore(tmp_path / "store")
    report = store.ingest([bags], ROBOT, CAMERAS, SIZE)
    reasons = {Path(bag).name: reason for bag, reason in report.left_out}
    for name, part in {
        "b_corrupt": "is damaged (checksum)",
        "c_duplicate": "holds the same data as",
        "d_killed": "run aloe bags recover",
        "e_one_camera": "no images of camera 'left_wrist' (it has: overhead)",
        "f_other_robot": "was recorded with robot 'bimanual_ur5e'",
        "g_other_objects": "has 3 numbers of object state, the store holds 7",
        "h_no_transitions": "no transitions of episode 'h_no_transitions'",
        "i_bad_label": "labels.jsonl:1: not a label",
    }.items():
        assert part in reasons.pop(name)
    assert reasons == {}
    assert [store.episodes[e].episode_id for e in report.episodes] == ["a_good", "z_good"]
    assert report.text().startswith("2 of 10 bags used (2 new")
    assert not (store.root / ".ingest").exists()
    # nothing of the bags left out is in the data
    assert all(len(np.unique(store.observe(np.arange(9))["images"][c])) > 1 for c in CAMERAS)
    assert len(store.images["overhead"]) == 2 * 5


def test_a_store_without_privileged_state_takes_bags_of_all_tasks(tmp_path: Path) -> None:
    for k, size in enumerate((7, 14, 0)):
        SyntheticEpisode(ROBOT, steps=5, seed=k, object_size=size).write(tmp_path / "bags" / f"e{k}")
    store = ReplayStore(tmp_path / "store")
    assert store.ingest([tmp_path / "bags"], ROBOT, object_state=False).episodes == [0, 1, 2]
    assert "object_state" not in store.observe(np.array([0]))
    assert "images" not in store.observe(np.array([0]))


def test_incomplete_bags_are_used_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "bags" / "e"
    SyntheticEpisode(ROBOT, steps=30).write(folder, "none", close=False, chunk_bytes=4000)
    size = (folder / "e_0.mcap").stat().st_size
    os.truncate(folder / "e_0.mcap", size * 2 // 3)
    from aloe_core.bag_recover import recover

    recover(folder)
    store = ReplayStore(tmp_path / "store")
    report = store.ingest([folder], ROBOT)
    assert len(report.incomplete) >= 2
    assert not store.episodes[0].complete
    assert not store.reaches_end(store.starts()).any()
    assert "incomplete" in report.text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cameras": ("overhead",)}, r"was made with cameras \('overhead', 'left_wrist'\), not \('overhead',\)"),
        ({"image_size": (8, 8)}, r"was made with image_size \(16, 24\), not \(8, 8\)"),
        ({"object_state": False}, r"was made with object state"),
        ({"robot": load_robot("bimanual_ur5e"), "cameras": ()}, r"is for robot 'aloha_sim' .* not 'bimanual_ur5e'"),
        ({"cameras": ("nose",)}, r"has no camera 'nose'"),
        ({"image_size": (0, 24)}, r"image size \(0, 24\) is not \(height, width\) between 1 and 8192 pixels"),
    ],
)
def test_a_store_is_made_for_one_purpose(tmp_path: Path, change: dict, sentence: str) -> None:
    write_bags(tmp_path / "bags", 1)
    store = ReplayStore(tmp_path / "store")
    arguments = {"robot": ROBOT, "cameras": CAMERAS, "image_size": SIZE}
    store.ingest([tmp_path / "bags"], **arguments)
    with pytest.raises(AloeError, match=sentence):
        store.ingest([tmp_path / "bags"], **{**arguments, **change})


def test_a_second_writer_waits_for_the_first_but_not_for_ever(tmp_path: Path) -> None:
    write_bags(tmp_path / "bags", 1)
    order: list[str] = []
    with ThreadPoolExecutor() as pool:
        with locked(tmp_path / "store"):
            report = pool.submit(
                ReplayStore(tmp_path / "store").ingest,
                [tmp_path / "bags"],
                ROBOT,
                on_progress=lambda done, total: order.append("second"),
            )
            time.sleep(0.3)
            order.append("first")
        assert report.result().added == 1
    assert order == ["first", "second"]
    with (
        locked(tmp_path / "store"),
        pytest.raises(AloeError, match="is being written by another process"),
        locked(tmp_path / "store", timeout=0.1),
    ):
        pass


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "store")
    assert (store.rows, store.episodes, len(store.starts())) == (0, [], 0)
    with pytest.raises(AloeError, match=r"is empty: no index\.json; ingest bags first"):
        _ = store.spec
    with pytest.raises(AloeError, match="no bags in"):
        store.ingest([tmp_path / "nothing"], ROBOT)
    SyntheticEpisode(load_robot("bimanual_ur5e"), steps=3).write(tmp_path / "bags" / "e")
    report = store.ingest([tmp_path / "bags"], ROBOT)  # nothing usable: a report, and still an empty store
    assert (report.episodes, len(report.left_out)) == ([], 1)
    assert store.rows == 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "index.json").write_text("{"), "index.json: not readable"),
        (lambda root: (root / "index.json").write_text('{"format": 99}'), "format 99, not 1; delete"),
        (lambda root: (root / "index.json").write_text('{"format": 1}'), "damaged"),
        (lambda root: os.truncate(root / "state.bin", 100), "state.bin"),
        (lambda root: (root / "image_overhead.bin").unlink(), "image_overhead.bin"),
    ],
)
def test_a_damaged_store_says_what_to_do(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    write_bags(tmp_path / "bags", 1)
    ReplayStore(tmp_path / "store").ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    damage(tmp_path / "store")
    with pytest.raises(AloeError, match=sentence):
        ReplayStore(tmp_path / "store")


def test_sigkill_at_any_moment_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    """A real process is killed while it appends; what it had committed is there, the rest comes with the next ingest."""
    write_bags(tmp_path / "bags", 12)
    script = """
        import sys
        from aloe_core.robot import load_robot
        from aloe_policy.replay import ReplayStore, ingest
        ingest.COMMIT_SECONDS = 0.0
        ReplayStore(sys.argv[1]).ingest([sys.argv[2]], load_robot("aloha_sim"), ("overhead", "left_wrist"), (16, 24),
                                        on_progress=lambda done, total: print(done, flush=True))
    """
    whole = ReplayStore(tmp_path / "whole")
    whole.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    for kill_after in (1, 5):
        root = tmp_path / f"store{kill_after}"
        command = [sys.executable, "-c", textwrap.dedent(script), str(root), str(tmp_path / "bags")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(kill_after):
            process.stdout.readline()
        time.sleep(0.003 * kill_after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = ReplayStore(root)  # opens, whatever the moment was
        assert kill_after - 1 <= len(store.episodes) <= 12
        for episode in store.episodes:
            np.testing.assert_array_equal(
                store.arrays["step"][episode.start : episode.start + episode.steps], np.arange(episode.steps)
            )
        with open(root / "state.bin", "ab") as file:
            file.write(b"torn")  # as a kill in the middle of a write leaves it
        report = store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
        assert len(report.episodes) == 12
        for name in whole.arrays:
            np.testing.assert_array_equal(store.arrays[name], whole.arrays[name])
        for camera in CAMERAS:
            np.testing.assert_array_equal(store.images[camera], whole.images[camera])


def test_a_full_disk_is_one_sentence_and_the_store_goes_on(tmp_path: Path) -> None:
    """The kernel refuses larger files; afterwards there is room again."""
    write_bags(tmp_path / "bags", 4)
    script = """
        import resource, sys
        from aloe_core.errors import AloeError
        from aloe_core.robot import load_robot
        from aloe_policy.replay import ReplayStore, ingest
        ingest.COMMIT_SECONDS = 0.0
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            ReplayStore(sys.argv[1]).ingest([sys.argv[2]], load_robot("aloha_sim"), ("overhead", "left_wrist"), (16, 24))
        except AloeError as error:
            print(error)
    """
    root = tmp_path / "store"
    command = [sys.executable, "-c", textwrap.dedent(script), str(root), str(tmp_path / "bags")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == f"cannot write the store {root}: File too large\n"
    store = ReplayStore(root)
    assert 0 < len(store.episodes) < 4
    assert store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE).episodes == [0, 1, 2, 3]


def test_chunks_are_the_executed_actions_to_the_end_of_the_episode(tmp_path: Path) -> None:
    episodes = write_bags(tmp_path / "bags", 2)
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    rows = store.starts()
    assert rows.tolist() == [*range(20), *range(21, 42)]  # row 20 and 42 are final observations
    batch = store.chunk_batch(rows, horizon=8)
    assert batch["action"].shape == (41, 8, 14)
    for b, row in enumerate(rows):
        episode, t = (episodes[0], row) if row < 20 else (episodes[1], row - 21)
        length = min(8, episode.steps - t)
        np.testing.assert_array_equal(batch["action"][b, :length], episode.executed[t : t + length])
        np.testing.assert_array_equal(batch["proposal"][b, :length], episode.proposal[t : t + length])
        np.testing.assert_array_equal(batch["action"][b, length:], np.tile(episode.executed[-1], (8 - length, 1)))
        np.testing.assert_array_equal(batch["action_mask"][b], np.arange(8) < length)
        np.testing.assert_allclose(batch["images"]["overhead"][b], episode.grey("overhead", t), atol=1)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    again = store.chunk_batch(rows[shuffled], horizon=8)
    np.testing.assert_array_equal(again["action"], batch["action"][shuffled])
    assert store.starts([1]).tolist() == list(range(21, 42))


def test_missing_ticks_cut_the_episode(tmp_path: Path) -> None:
    from aloe_core.bag_writer import BagWriter
    from aloe_core.messages import typestore

    episode = SyntheticEpisode(ROBOT, steps=12)
    with BagWriter(tmp_path / "e", episode.info("e")) as bag:
        for topic, type, message, ns in episode.messages(bag.info):
            if not (topic.endswith("transition") and message.step in (4, 5)):
                bag.write(topic, type, typestore().serialize_cdr(message, type).tobytes(), ns)
    store = ReplayStore(tmp_path / "store")
    report = store.ingest([tmp_path / "e"], ROBOT)
    assert ("steps 4 .. 5 are missing") in [problem for _, problem in report.incomplete]
    assert store.segments.tolist() == [[0, 3, 0], [4, 10, 0]]  # the observation after step 3 was lost with step 4
    batch = store.chunk_batch(store.starts(), horizon=4)
    assert batch["action_mask"].sum(axis=1).tolist() == [3, 2, 1, 4, 4, 4, 3, 2, 1]
    assert store.reaches_end(store.starts()).tolist() == [False] * 3 + [True] * 6
    np.testing.assert_array_equal(batch["action"][0], episode.executed[[0, 1, 2, 2]])


def test_features_are_cached_once(tmp_path: Path) -> None:
    write_bags(tmp_path / "bags", 2)
    store = ReplayStore(tmp_path / "store")
    store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    calls: list[int] = []

    def encode(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return images.mean(axis=(1, 2), dtype=np.float32)[:, None] / 255

    store.cache_features("mean.v1", encode, batch_size=4)
    assert sum(calls) == 2 * len(store.images["overhead"])
    for camera in CAMERAS:
        expected = store.images[camera].mean(axis=(1, 2), dtype=np.float32)[:, None] / 255
        np.testing.assert_array_equal(store.features("mean.v1")[camera], expected.astype(np.float16))
    rows = store.starts()[[0, 7, 30]]
    seen = store.observe(rows, encoder="mean.v1")
    assert seen["features"]["overhead"].shape == (3, 1, 3)
    assert seen["features"]["overhead"].dtype == np.float16
    assert "images" not in seen

    calls.clear()
    store.cache_features("mean.v1", encode)
    assert calls == []
    SyntheticEpisode(ROBOT, steps=4, seed=9, cameras=CAMERAS).write(tmp_path / "bags" / "later")
    store.ingest([tmp_path / "bags"], ROBOT, CAMERAS, SIZE)
    with pytest.raises(AloeError, match=r"features of encoder 'mean.v1' are there for 22 of 25 images"):
        store.features("mean.v1")
    store.cache_features("mean.v1", encode)
    assert sum(calls) == 2 * 3
    assert len(store.features("mean.v1")["overhead"]) == 25
    # A process that opened the store before the last bag came and is late takes nothing away.
    update_features(
        store.root,
        "mean.v1",
        {c: store.images[c][:22] for c in CAMERAS},
        encode,
        4,
        on_progress=lambda done, total: None,
    )
    assert len(store.features("mean.v1")["overhead"]) == 25

    with pytest.raises(AloeError, match="are there for 0 of 25"):
        store.observe(rows, encoder="other")
    with pytest.raises(AloeError, match=r"encoder id '\.\./x'"):
        store.cache_features("../x", encode)
    with pytest.raises(AloeError, match="not finite in 16 bits"):
        store.cache_features("huge", lambda images: np.full((len(images), 2), 1e9))
    with pytest.raises(AloeError, match="features of shape"):
        store.cache_features("odd", lambda images: np.zeros((len(images), len(images))), batch_size=20)


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Anonymous memory of a process that reads random batches, at 1 and at 10 times the images."""
    script = """
        import re, sys
        import numpy as np
        from aloe_policy.replay import ReplayStore
        def anonymous():
            return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
        store = ReplayStore(sys.argv[1])
        before = anonymous()
        rng = np.random.default_rng(0)
        starts = store.starts()
        for _ in range(30):
            store.chunk_batch(rng.choice(starts, 16), 50)
        print(anonymous() - before, sum(i.nbytes for i in store.images.values()))
    """
    used = {}
    for scale in (1, 10):
        bags = tmp_path / f"bags{scale}"
        for k in range(scale):
            SyntheticEpisode(ROBOT, steps=200, seed=k, cameras=("overhead",)).write(bags / f"e{k}")
        ReplayStore(tmp_path / f"store{scale}").ingest([bags], ROBOT, ("overhead",), (96, 96))
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / f"store{scale}")]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        used[scale] = [int(v) for v in out]
    assert used[10][1] == 10 * used[1][1] > 27_000_000
    assert used[10][0] < used[1][0] + 0.1 * used[10][1]


def test_report_of_the_replay(tmp_path: Path) -> None:
    from dataclasses import replace

    bags = tmp_path / "bags"
    human = {0: None, 1: (5, 10), 2: (0, 20)}
    for k, span in human.items():
        episode = SyntheticEpisode(
            ROBOT, steps=20, seed=k, human=span, outcome=Outcome.SUCCESS if k else Outcome.FAILURE
        )
        info = replace(episode.info(f"e{k}"), iteration=1 if k else 0)
        episode.info = lambda episode_id, info=info: info  # type: ignore[method-assign]
        episode.write(bags / f"e{k}")
    store = ReplayStore(tmp_path / "store")
    store.ingest([bags], ROBOT)
    report = replay_report(store)
    assert report.frames == 60
    assert [(r.iteration, r.source, r.episodes, r.frames) for r in report.rows] == [
        (0, "policy", 1, 20),
        (1, "policy", 1, 15),
        (1, "human", 2, 25),
    ]
    assert sum(r.share for r in report.rows) == pytest.approx(1)
    first, second = report.iterations
    assert (first.takeover_rate, first.takeover_episodes, first.successes) == (0, 0, 0)
    assert second.takeover_rate == pytest.approx(5 / 20)  # the pure demonstration is no take-over
    assert second.takeover_episodes == 1
    assert "human" in report.text()
    assert "outcome" not in report.text()
    SyntheticEpisode(ROBOT, steps=20, seed=3, outcome=Outcome.UNLABELLED).write(bags / "e3")
    store.ingest([bags], ROBOT)
    assert replay_report(store).unlabelled == 1
    assert (
        replay_report(store).text().endswith("\n1 of 4 episodes without an outcome: docs/record.md says how to label")
    )
    json.dumps(report.rows[0].__dict__)
