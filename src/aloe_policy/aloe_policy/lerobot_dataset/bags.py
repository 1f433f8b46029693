"""LeRobotDataset -> bags. What a bag of ours became in a dataset becomes the same bag again, images within codec loss.

A dataset that is not ours is taken as demonstrations: one source drove every arm throughout, no outcome unless `next.success` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from aloe_core import topics as names
from aloe_core.bag_format import LATCHED, RELIABLE, SENSOR, EpisodeInfo, TopicQos
from aloe_core.bag_labels import Label, append_label
from aloe_core.bag_writer import whole_bag
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, chunk_msg, compressed_image_msg, header_msg, joint_state_msg, typestore
from aloe_core.robot import RobotDescription, load_robot
from aloe_core.vocabulary import EventType, Outcome, Source, Termination, outcome_from_text
from aloe_policy.lerobot_dataset import layout
from aloe_policy.lerobot_dataset.layout import Shapes
from aloe_policy.lerobot_dataset.reading import DatasetEpisode, DatasetReader, decode

JPEG_QUALITY = 95
START_NS = 1_000_000_000  # stamp of the first frame where the dataset has no stamps of ours
LARGEST = dict.fromkeys(
    ("aloe.fragment", "aloe.chunk_step", "aloe.intervention_id"), 2**32 - 1
)  # uint32 in a Transition
StoredEvent = tuple[int, EventType, Outcome, Termination, str]  # stamp [ns], .., message
StoredLabel = tuple[
    Literal["unlabelled", "success", "failure", "timeout"], int, str, str
]  # .., stamp [ns], who, message
EPISODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def from_lerobot(
    dataset: Path | str,
    output: Path | str,
    robot: RobotDescription | None = None,
    source: Source = Source.HUMAN,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Writes every episode of `dataset` as a bag `<output>/<episode id>`; returns their number.

    Args:
        robot: what the vectors describe; None takes the description that a dataset of ours names.
        source: who drove in a dataset that is not ours.
        report: is told one line per episode.

    Raises:
        AloeError: not a dataset of this format, damaged, with images that are not videos, another robot's, or a bag of that name exists; the message
            names file or feature.
    """
    root, output = Path(dataset), Path(output)
    reader = DatasetReader(root)
    if robot is None:
        if reader.about is None:
            raise AloeError(f"{root} does not say for which robot description its vectors are; name the robot")
        robot = load_robot(str(reader.about.get("robot")))
    if reader.about is not None and reader.about.get("robot_hash") != robot.hash:
        raise AloeError(
            f"{root} is of robot '{reader.about.get('robot')}' with hash {reader.about.get('robot_hash')}, "
            f"robot '{robot.name}' has hash {robot.hash}: joints, grippers, cameras or control rate differ"
        )
    _check(reader, robot)
    known = {camera.name for camera in robot.cameras}
    cameras = [c for c in reader.cameras() if c in known]
    for camera in set(reader.cameras()) - known:
        report(f"camera '{camera}' is left out: robot '{robot.name}' has none of that name")
    count = 0
    for episode in reader.episodes():
        if len(episode):
            folder = _BagOf(reader, robot, cameras, episode, source).write(output)
            report(f"{folder}: {len(episode)} steps")
            count += 1
    return count


def _check(reader: DatasetReader, robot: RobotDescription) -> None:
    where = reader.root / layout.INFO_FILE
    inside = [key for key, feature in reader.features.items() if feature["dtype"] == "image"]
    if inside:
        raise AloeError(
            f"{where}: feature '{inside[0]}' holds images inside the tables, which are not read; convert it to video"
        )
    if reader.fps != robot.control_rate_hz:
        raise AloeError(
            f"{where}: {reader.fps} frames per second, robot '{robot.name}' is controlled at {robot.control_rate_hz} Hz"
        )
    for key in (layout.STATE, layout.ACTION):
        feature = reader.features.get(key)
        if feature is None or feature["shape"] != [robot.action_dim]:
            size = "missing" if feature is None else f"of shape {feature['shape']}"
            raise AloeError(
                f"{where}: feature '{key}' is {size}, robot '{robot.name}' has {robot.action_dim} joints and grippers"
            )
        if isinstance(feature["names"], list) and feature["names"] != list(robot.action_names):
            raise AloeError(
                f"{where}: feature '{key}' is of {feature['names']}, robot '{robot.name}' has {list(robot.action_names)}"
            )
    if reader.about is None:
        return
    for key, expected in layout.features(robot, Shapes(), {}).items():
        found = reader.features.get(key)
        if found is None or (found["dtype"], found["shape"]) != (expected["dtype"], expected["shape"]):
            raise AloeError(f"{where}: feature '{key}' is missing or not {expected['dtype']} {expected['shape']}")
    cameras, stamps = reader.cameras(), reader.features.get("aloe.image_stamp_ns", {"names": []})
    if cameras and sorted(stamps["names"] or []) != sorted(cameras):
        raise AloeError(f"{where}: feature 'aloe.image_stamp_ns' is not of the cameras {cameras}")


class _BagOf:
    """One episode on its way into a bag."""

    def __init__(
        self,
        reader: DatasetReader,
        robot: RobotDescription,
        cameras: list[str],
        episode: DatasetEpisode,
        source: Source,
    ) -> None:
        self.reader, self.robot, self.cameras, self.episode = reader, robot, cameras, episode
        self.file = reader.root / "aloe/episodes"
        self.columns = episode.columns if reader.about is not None else _foreign(episode, robot, source)
        for name in (*layout.SCALARS.values(), "aloe.source") if reader.about is not None else ():
            values, most = (
                self.columns[name],
                int(max(Source)) if name == "aloe.source" else LARGEST.get(name, 2**63 - 1),
            )
            if values.dtype.kind != "i" or values.min() < 0 or values.max() > most:
                raise AloeError(
                    f"{reader.root}: episode {episode.index}: '{name}' is not whole numbers from 0 to {most}"
                )
        self.versions = [] if reader.about is None else [str(v) for v in reader.about.get("policy_versions", [])]
        once = episode.once
        if once:
            self.info = EpisodeInfo.from_text(decode(dict[str, str], once["info"], self.file, "info"), str(self.file))
        else:
            self.info = EpisodeInfo(
                f"{reader.root.name}-{episode.index:06d}",
                task=episode.task,
                instruction=episode.task,
                robot=robot.name,
                robot_hash=robot.hash,
            )
        if not EPISODE_ID.fullmatch(self.info.episode_id):
            raise AloeError(
                f"{self.file}: episode id '{self.info.episode_id}' is not a plain name (letters, digits, . _ -)"
            )

    def write(self, output: Path) -> Path:
        """Writes the bag and its labels; returns its folder, which appears when both are complete."""
        folder, once = output / self.info.episode_id, self.episode.once
        try:
            outcome = outcome_from_text(once["outcome"]) if once else Outcome(int(self.columns["aloe.outcome"][-1]))
            termination = Termination[once["termination"].upper()] if once else Termination.NONE
        except (KeyError, ValueError, AttributeError) as error:
            raise AloeError(f"{self.file}: episode {self.episode.index}: outcome or termination: {error}") from None
        labels = [decode(StoredLabel, text, self.file, "labels") for text in once.get("labels") or []]
        with whole_bag(folder, self.info) as bag:
            for topic, message, time_ns, qos in self._messages():
                name = topic if topic.startswith("/") else f"/{topic}"
                type = message.__msgtype__
                bag.add_topic(name, type, qos)
                bag.write(name, type, bytes(typestore().serialize_cdr(message, type)), time_ns)
            bag.close(outcome, termination)
            for name, stamp_ns, who, text in labels:
                append_label(bag.folder, Label(Outcome[name.upper()], stamp_ns, who, text))
        return folder

    def _messages(self) -> Iterator[tuple[str, Any, int, TopicQos]]:
        """(topic, message, time [ns], quality of service) in the order of a recording."""
        stamps = self.columns["aloe.stamp_ns"]
        events = self._events()
        yield from ((names.EPISODE_EVENT, m, ns, LATCHED) for kind, m, ns in events if kind == EventType.STARTED)
        iterations = decode(dict[str, int], self.episode.once.get("iterations", "{}"), self.file, "iterations")
        for version, iteration in iterations.items():
            yield names.POLICY_VERSION, self._version(version, iteration), int(stamps[0]), LATCHED
        frames = {camera: self.reader.frames(self.episode, camera) for camera in self.cameras}
        shown: dict[str, int] = {}
        chunks = sorted(self.episode.chunks, key=lambda row: row["stamp_ns"])
        for t, now in enumerate(stamps.tolist()):
            if t:
                yield names.TRANSITION, self._transition(t - 1), now, RELIABLE
            objects, sim = self.columns.get("aloe.object_state"), self.columns.get("aloe.sim_state")
            yield from self._observation(
                now,
                self.columns[layout.STATE][t],
                None if objects is None else objects[t],
                None if sim is None else sim[t],
            )
            for camera, images in frames.items():
                image, stamp = next(images), self._image_stamp(camera, t)
                if stamp and stamp != shown.get(camera):
                    shown[camera] = stamp
                    yield self._image(camera, stamp, _jpeg(image))
            while chunks and chunks[0]["stamp_ns"] <= now:
                yield names.CHUNK, self._chunk(chunks.pop(0)), now, RELIABLE
        yield from self._end(chunks)
        yield from ((names.EPISODE_EVENT, m, ns, LATCHED) for kind, m, ns in events if kind != EventType.STARTED)

    def _end(self, chunks: list[dict[str, Any]]) -> Iterator[tuple[str, Any, int, TopicQos]]:
        """The last transition, and the observation after it where the dataset has one."""
        last = int(self.columns["aloe.stamp_ns"][-1])
        end = int(self.episode.once.get("final_stamp_ns", last))
        yield names.TRANSITION, self._transition(len(self.episode) - 1), max(last, end), RELIABLE
        if end > last:
            once = self.episode.once
            sim = self.columns.get("aloe.sim_state")
            objects = once["final_object_state"]
            yield from self._observation(
                end,
                np.asarray(once["final_state"], np.float32),
                None if objects is None else np.asarray(objects, np.float32),
                None if sim is None else np.full(sim.shape[1], np.nan),
            )
            for row in once["final_images"]:
                if row["camera"] in self.cameras:
                    yield self._image(row["camera"], int(row["stamp_ns"]), row["data"])
        yield from ((names.CHUNK, self._chunk(row), max(last, end), RELIABLE) for row in chunks)

    def _observation(
        self, now: int, state: np.ndarray, objects: np.ndarray | None, sim: np.ndarray | None
    ) -> Iterator[tuple[str, Any, int, TopicQos]]:
        device = self.robot.to_device(np.asarray(state, np.float64))
        yield (
            self.robot.joint_states_topic,
            joint_state_msg(bag_make, now, self.robot.action_names, device),
            now,
            RELIABLE,
        )
        if objects is not None:
            task = bag_make(
                "aloe_msgs/msg/TaskState",
                header=header_msg(bag_make, now),
                episode_id=self.info.episode_id,
                task=self.info.task,
                seed=self.info.seed,
                step=0,
                outcome=0,
                outcome_message="",
                progress=0.0,
                object_names=[],
                object_state=np.asarray(objects, np.float64).reshape(-1),
                sim_state=np.empty(0) if sim is None else np.asarray(sim, np.float64).reshape(-1),
            )
            yield names.TASK_STATE, task, now, RELIABLE

    def _image(self, camera: str, stamp: int, jpeg: bytes) -> tuple[str, Any, int, TopicQos]:
        message = compressed_image_msg(bag_make, stamp, camera, jpeg)
        return self.robot.camera(camera).compressed_topic, message, stamp, SENSOR

    def _image_stamp(self, camera: str, t: int) -> int:
        stamps = self.columns.get("aloe.image_stamp_ns")
        if stamps is None:
            return int(self.columns["aloe.stamp_ns"][t])
        order = self.reader.features["aloe.image_stamp_ns"]["names"]
        return int(stamps.reshape(len(self.episode), -1)[t, order.index(camera)])

    def _chunk(self, row: dict[str, Any]) -> Any:
        positions = np.asarray(row["positions"], np.float32)
        if row["horizon"] < 1 or positions.size != row["horizon"] * self.robot.action_dim:
            raise AloeError(
                f"{self.reader.root / 'aloe/chunks'}: chunk {row['chunk_id']} does not have {row['horizon']} rows"
            )
        chunk = ActionChunk(
            stamp_ns=row["stamp_ns"],
            positions=positions.reshape(row["horizon"], self.robot.action_dim),
            dt_ns=row["dt_ns"],
            chunk_id=row["chunk_id"],
            request_id=row["request_id"],
            policy_version=row["policy_version"],
            episode_id=self.info.episode_id,
            inference_latency_s=row["inference_latency_s"],
            camera_stamps_ns=dict(zip(row["cameras"], row["camera_stamps_ns"], strict=True)),
        )
        return chunk_msg(bag_make, chunk, self.robot)

    def _transition(self, t: int) -> Any:
        c, arms = self.columns, len(self.robot.arms)
        proposal, version = c["aloe.proposal"][t], int(c["aloe.policy_version"][t])
        done, truncated = bool(c["next.done"][t]), bool(c["next.truncated"][t])
        return bag_make(
            "aloe_msgs/msg/Transition",
            header=header_msg(bag_make, int(c["aloe.stamp_ns"][t])),
            episode_id=self.info.episode_id,
            step=int(c["aloe.step"][t]),
            fragment=int(c["aloe.fragment"][t]),
            arm_names=list(self.robot.arm_names),
            source=c["aloe.source"].reshape(-1, arms)[t].astype(np.uint8),
            executed=c[layout.ACTION][t].astype(np.float64),
            proposal=np.empty(0) if np.isnan(proposal).all() else proposal.astype(np.float64),
            chunk_id=int(c["aloe.chunk_id"][t]),
            chunk_step=int(c["aloe.chunk_step"][t]),
            policy_version=self.versions[version] if 0 <= version < len(self.versions) else "",
            intervention_id=int(c["aloe.intervention_id"][t]),
            reward=float(c["next.reward"][t]),
            terminated=done and not truncated,
            truncated=truncated,
            safety_limited=bool(c["aloe.safety_limited"][t]),
        )

    def _events(self) -> list[tuple[EventType, Any, int]]:
        found = [decode(StoredEvent, text, self.file, "events") for text in self.episode.once.get("events") or []]
        if not self.episode.once:
            stamps, outcome = self.columns["aloe.stamp_ns"], Outcome(int(self.columns["aloe.outcome"][-1]))
            found = [
                (int(stamps[0]), EventType.STARTED, Outcome.UNLABELLED, Termination.NONE, ""),
                (int(stamps[-1]), EventType.STOPPED, outcome, Termination.NONE, ""),
            ]
        events = []
        for stamp, kind, outcome, termination, message in found:
            event = bag_make(
                "aloe_msgs/msg/EpisodeEvent",
                header=header_msg(bag_make, stamp),
                event=int(kind),
                episode_id=self.info.episode_id,
                task=self.info.task,
                instruction=self.info.instruction,
                seed=self.info.seed,
                time_limit=0.0,
                outcome=int(outcome),
                termination_reason=int(termination),
                policy_version=self.info.policy_version,
                message=message,
            )
            events.append((kind, event, stamp))
        return events

    def _version(self, version: str, iteration: int) -> Any:
        texts = dict.fromkeys(("path", "sha256", "robot_hash", "parent_version", "method"), "")
        header = header_msg(bag_make, int(self.columns["aloe.stamp_ns"][0]))
        return bag_make("aloe_msgs/msg/PolicyVersion", header=header, version=version, iteration=iteration, **texts)


def _foreign(episode: DatasetEpisode, robot: RobotDescription, source: Source) -> dict[str, np.ndarray]:
    """Our columns for an episode of a dataset that is not ours."""
    count, arms = len(episode), len(robot.arms)
    success = episode.columns.get("next.success")
    outcome = Outcome.UNLABELLED if success is None else Outcome.SUCCESS if success.any() else Outcome.FAILURE
    done = np.zeros(count, bool)
    done[-1] = True
    none = np.zeros(count, np.int64)
    return {
        "next.reward": np.where(done & (outcome == Outcome.SUCCESS), 0.0, -1.0),
        **episode.columns,
        "next.done": done,
        "next.truncated": done & (outcome == Outcome.UNLABELLED),
        "aloe.step": np.arange(count),
        "aloe.stamp_ns": START_NS + np.arange(count) * robot.control_dt_ns,
        "aloe.fragment": none,
        "aloe.chunk_id": none,
        "aloe.chunk_step": none,
        "aloe.intervention_id": np.full(count, int(source == Source.HUMAN)),
        "aloe.source": np.full((count, arms), int(source)),
        "aloe.proposal": np.full((count, robot.action_dim), np.nan, np.float32),
        "aloe.policy_version": np.full(count, -1),
        "aloe.outcome": np.full(count, int(outcome)),
        "aloe.safety_limited": np.zeros(count, bool),
    }


def _jpeg(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])
