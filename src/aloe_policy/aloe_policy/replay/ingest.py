"""Bags -> replay store: incremental, idempotent, parallel, atomic; says of every bag whether it is used and if not, why."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import cv2
import numpy as np

from aloe_core.bag_format import replace_file
from aloe_core.bag_labels import read_labels as read_bag_labels
from aloe_core.bag_messages import find_bags
from aloe_core.errors import AloeError
from aloe_core.robot import RobotDescription
from aloe_core.vocabulary import Outcome
from aloe_policy.replay.decode import Decoded, Job, decode, fingerprint
from aloe_policy.replay.layout import INDEX_FILE, LABELS_FILE, Index, StoredEpisode, StoreSpec, locked, read_labels

COMMIT_SECONDS = 2.0  # wall time between two replacements of the index; a kill costs what came since
WORK_FOLDER = ".ingest"
COPY_BLOCK = 1 << 22  # [byte]
Progress = Callable[[int, int], None]


@dataclass
class IngestReport:
    """What became of the bags of one `ingest`.

    Attributes:
        episodes: numbers of the episodes of these bags in the store, in the order of the bags.
        added: bags decoded now; the rest was known.
        relabelled: bags whose outcome changed since the last ingest.
        left_out: (bag, reason) of every bag that is not used.
        incomplete: (bag, problem) of bags that are used all the same.
    """

    bags: int = 0
    episodes: list[int] = field(default_factory=list)
    added: int = 0
    relabelled: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    incomplete: list[tuple[str, str]] = field(default_factory=list)
    steps: int = 0
    frames: int = 0
    bag_bytes: int = 0  # of the bags added
    seconds: float = 0.0

    def text(self) -> str:
        """For a person: a line of numbers, then a line per bag that is left out or incomplete."""
        lines = [
            f"{len(self.episodes)} of {self.bags} bags used ({self.added} new, {self.relabelled} relabelled): "
            f"{self.steps} steps, {self.frames} new images, {self.seconds:.1f} s"
        ]
        lines += [f"left out    {reason}" for _, reason in self.left_out]
        lines += [f"incomplete  {bag}: {problem}" for bag, problem in self.incomplete]
        return "\n".join(lines)


def ingest(
    root: Path,
    bags: Iterable[Path | str],
    robot: RobotDescription,
    cameras: Sequence[str] = (),
    image_size: tuple[int, int] = (224, 224),
    object_state: bool = True,
    workers: int = 1,
    on_progress: Progress = lambda done, total: None,
) -> IngestReport:
    """Brings the store at `root` up to date with `bags`; see `ReplayStore.ingest`."""
    started = time.monotonic()
    StoreSpec.of(robot, cameras, image_size, 0)  # refuses unknown cameras and impossible sizes before anything is read
    folders = [f.resolve() for f in find_bags(bags)]
    folders = list(dict.fromkeys(folders))
    report = IngestReport(bags=len(folders))
    with locked(root):
        index = Index.read(root)
        if index is not None:
            _check_spec(
                root, index.spec, StoreSpec.of(robot, cameras, image_size, index.spec.object_size), object_state
            )
        shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
        writer = _Writer(root, index)
        used: dict[str, Path] = {}  # content -> bag of this call
        before = {e.content for e in index.episodes} if index is not None else set()
        try:
            for number, (folder, result) in enumerate(
                _decoded(folders, root, robot, cameras, image_size, index, workers)
            ):
                _take(folder, result, writer, used, report, robot, cameras, image_size, object_state)
                on_progress(number + 1, len(folders))
            writer.commit()
            if writer.index is not None:
                report.relabelled = _update_labels(root, writer.index, used, before, report)
        except BrokenProcessPool:
            raise AloeError(
                f"store {root}: a process that decoded bags was killed (out of memory?); try fewer workers"
            ) from None
        except OSError as error:
            raise AloeError(f"cannot write the store {root}: {error.strerror or error}") from None
        finally:
            writer.close()
            shutil.rmtree(root / WORK_FOLDER, ignore_errors=True)
        if writer.index is not None:
            numbers = {e.content: n for n, e in enumerate(writer.index.episodes)}
            report.episodes = [numbers[content] for content in used]
            report.steps = sum(writer.index.episodes[n].steps for n in report.episodes)
    report.seconds = time.monotonic() - started
    return report


def _take(
    folder: Path,
    result: Decoded,
    writer: _Writer,
    used: dict[str, Path],
    report: IngestReport,
    robot: RobotDescription,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    object_state: bool,
) -> None:
    """Adds one decoded bag to the store, or says why not."""
    reason = result.reason
    if not reason and result.content in used:
        reason = f"bag {folder} holds the same data as {used[result.content]}"
    if not reason and result.arrays is not None and result.facts is not None and not writer.holds(result.content):
        objects = result.arrays.get("object_state")
        size = objects.shape[1] if objects is not None and object_state else 0
        if writer.index is None:
            writer.start(StoreSpec.of(robot, cameras, image_size, size))
        elif size != writer.index.spec.object_size:
            reason = (
                f"bag {folder} has {size} numbers of object state, the store holds {writer.index.spec.object_size}; "
                "ingest it into another store, or without object state"
            )
        if not reason:
            work = _work(writer.root, folder)
            writer.append(result, work)
            shutil.rmtree(work, ignore_errors=True)
            report.added += 1
            report.frames += sum(result.facts["frames"].values())
            report.bag_bytes += sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    if reason:
        report.left_out.append((str(folder), reason))
        return
    used[result.content] = folder
    writer.remember(folder, result)


def _decoded(
    folders: Sequence[Path],
    root: Path,
    robot: RobotDescription,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    index: Index | None,
    workers: int,
) -> Iterator[tuple[Path, Decoded]]:
    """Results in the order of the bags; at most two per worker are under way."""
    known = frozenset(e.content for e in index.episodes) if index is not None else frozenset()
    files = index.files if index is not None else {}

    def job(folder: Path) -> Job | Decoded:
        mark = files.get(str(folder))
        if mark is not None and mark[1] in known and mark[0] == fingerprint(folder):
            return Decoded(folder, mark[1], mark[0])
        return Job(folder, _work(root, folder), robot, tuple(cameras), image_size, known)

    if workers <= 1:
        for folder in folders:
            todo = job(folder)
            yield folder, todo if isinstance(todo, Decoded) else decode(todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"), cv2.setNumThreads, (1,)) as pool:
        waiting: deque[tuple[Path, Decoded | Future[Decoded]]] = deque()
        for folder in folders:
            todo = job(folder)
            waiting.append((folder, todo if isinstance(todo, Decoded) else pool.submit(decode, todo)))
            if len(waiting) > 2 * workers:
                done, result = waiting.popleft()
                yield done, result if isinstance(result, Decoded) else result.result()
        for done, result in waiting:
            yield done, result if isinstance(result, Decoded) else result.result()


def _work(root: Path, folder: Path) -> Path:
    return root / WORK_FOLDER / hashlib.blake2b(bytes(folder), digest_size=16).hexdigest()


class _Writer:
    """Appends episodes to the data files; they exist once `commit` has replaced the index."""

    def __init__(self, root: Path, index: Index | None) -> None:
        self.root, self.index = root, index
        self._files: dict[str, FileIO] = {}
        self._dirty = False
        self._committed = time.monotonic()
        if index is not None:
            self.start(index.spec)

    def start(self, spec: StoreSpec) -> None:
        """Opens the data files, cut to what the index knows."""
        if self.index is None:
            self.index = Index(spec)
        sizes = {
            name: (self.index.rows, dtype.itemsize * _count(shape)) for name, (dtype, shape) in spec.arrays().items()
        }
        for camera in spec.cameras:
            sizes[f"image_{camera}"] = (self.index.frames(camera), 3 * spec.image_size[0] * spec.image_size[1])
        for name, (rows, row_bytes) in sizes.items():
            self._files[name] = FileIO(self.root / f"{name}.bin", "ab")
            if os.fstat(self._files[name].fileno()).st_size < rows * row_bytes:
                raise AloeError(
                    f"{self.root / name}.bin is shorter than {INDEX_FILE} says; delete {self.root} and ingest again"
                )
            self._files[name].truncate(rows * row_bytes)
        self._contents = {e.content for e in self.index.episodes}
        self._frames = {camera: self.index.frames(camera) for camera in spec.cameras}

    def holds(self, content: str) -> bool:
        return self.index is not None and content in self._contents

    def append(self, result: Decoded, work: Path) -> None:
        """Adds rows and images of one episode."""
        assert self.index is not None
        assert result.arrays is not None
        assert result.facts is not None
        spec = self.index.spec
        offsets = np.array([self._frames[c] for c in spec.cameras], np.int64)
        for name, (dtype, shape) in spec.arrays().items():
            rows = result.arrays[name] + offsets if name == "image_index" else result.arrays[name]
            assert rows.shape[1:] == shape, name
            _write_all(self._files[name], np.ascontiguousarray(rows, dtype).data.cast("B"))
        for camera in spec.cameras:
            with open(work / f"image_{camera}.bin", "rb") as stream:
                while block := stream.read(COPY_BLOCK):
                    _write_all(self._files[f"image_{camera}"], memoryview(block))
            self._frames[camera] += result.facts["frames"][camera]
        self.index.episodes.append(StoredEpisode(content=result.content, start=self.index.rows, **result.facts))
        self._contents.add(result.content)
        self._dirty = True
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def remember(self, folder: Path, result: Decoded) -> None:
        """Notes how a known bag's files look, so that it need not be read again."""
        assert self.index is not None
        entry = [result.fingerprint, result.content]
        if self.index.files.get(str(folder)) != entry:
            self.index.files[str(folder)] = entry
            self._dirty = True

    def commit(self) -> None:
        """Makes everything appended so far visible, in one step."""
        if self.index is not None and self._dirty:
            for file in self._files.values():
                os.fsync(file.fileno())
            replace_file(self.root / INDEX_FILE, self.index.to_text())
            self._dirty = False
            self._committed = time.monotonic()

    def close(self) -> None:
        """Closes the data files."""
        for file in self._files.values():
            file.close()


def _write_all(file: FileIO, view: memoryview) -> None:
    """An unbuffered write may take a part only, as on a disk that is nearly full."""
    while view:
        view = view[file.write(view) :]


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _update_labels(root: Path, index: Index, used: dict[str, Path], before: set[str], report: IngestReport) -> int:
    """Reads the labels of the bags at hand; replaces labels.json if one changed. Returns how many known bags changed their outcome."""
    held = read_labels(root)
    labels: dict[str, Outcome] = dict(held)
    episodes = {e.content: e for e in index.episodes}
    changed = 0
    for content, folder in list(used.items()):
        try:
            given = read_bag_labels(folder)
        except AloeError as error:
            report.left_out.append((str(folder), str(error)))
            del used[content]
            continue
        if given:
            labels[content] = given[-1].outcome
        else:
            labels.pop(content, None)
        recorded = Outcome(episodes[content].recorded_outcome)
        changed += content in before and held.get(content, recorded) != labels.get(content, recorded)
        report.incomplete += [(str(folder), problem) for problem in episodes[content].problems]
    if labels != held:
        replace_file(root / LABELS_FILE, json.dumps({c: o.name.lower() for c, o in labels.items()}))
    return changed


def _check_spec(root: Path, held: StoreSpec, wanted: StoreSpec, object_state: bool) -> None:
    """Refuses to mix what does not fit into one store."""
    if held.robot_hash != wanted.robot_hash:
        raise AloeError(
            f"store {root} is for robot '{held.robot}' (hash {held.robot_hash}), not '{wanted.robot}' (hash {wanted.robot_hash})"
        )
    for name in ("cameras", "image_size"):
        if getattr(held, name) != getattr(wanted, name):
            raise AloeError(
                f"store {root} was made with {name} {getattr(held, name)}, not {getattr(wanted, name)}; use another folder"
            )
    if held.object_size and not object_state:
        raise AloeError(f"store {root} was made with object state; use another folder to leave it out")
