"""What was recorded comes back as arrays: closed forms, other people's bags, incomplete and foreign ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from aloe_core import topics as names
from aloe_core.bag_content import EpisodeContent
from aloe_core.bag_format import EpisodeInfo, iteration_of
from aloe_core.bag_labels import Label, append_label, read_labels
from aloe_core.bag_reader import find_bags, iter_messages, read_episode, read_info
from aloe_core.bag_writer import BagWriter
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, chunk_msg, compressed_image_msg, header_msg, typestore
from aloe_core.observation import ObservationBuilder
from aloe_core.robot import RobotDescription, load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import EventType, Outcome, Source, Termination

ROBOT = load_robot("aloha_sim")
Messages = list[tuple[str, str, Any, int]]


def write(
    folder: Path, messages: Messages, info: EpisodeInfo | None = None, outcome: Outcome = Outcome.SUCCESS
) -> None:
    with BagWriter(folder, info or SyntheticEpisode(ROBOT).info(folder.name)) as bag:
        for topic, type, message, ns in messages:
            bag.write(topic, type, typestore().serialize_cdr(message, type).tobytes(), ns)
        bag.close(outcome)


def of_topic(messages: Messages, topic: str) -> list[Any]:
    return [m for t, _, m, _ in messages if t == "/" + topic.lstrip("/")]


def without(messages: Messages, topic: str) -> Messages:
    return [m for m in messages if m[0] != "/" + topic.lstrip("/")]


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_arrays_are_those_that_were_written(tmp_path: Path, compression: str) -> None:
    episode = SyntheticEpisode(ROBOT, steps=50, cameras=("overhead", "left_wrist"), human=(10, 20), seed=3)
    info = episode.write(tmp_path / "e", compression)
    record = read_episode(tmp_path / "e", ROBOT)
    assert record.problems == []
    assert (record.info, record.outcome, record.termination) == (info, Outcome.SUCCESS, Termination.TASK)
    assert len(record) == 50
    np.testing.assert_array_equal(record.step, np.arange(50))
    np.testing.assert_array_equal(record.stamps_ns, episode.stamps_ns[:-1])
    np.testing.assert_allclose(record.state, episode.state[:-1], atol=1e-6)
    np.testing.assert_array_equal(record.executed, episode.executed)
    np.testing.assert_array_equal(record.proposal, episode.proposal)
    np.testing.assert_array_equal(record.object_state, episode.objects[:-1])
    np.testing.assert_array_equal(record.sim_state[:, 0], np.arange(50))
    human = np.where(episode.is_human, Source.HUMAN, Source.POLICY)
    np.testing.assert_array_equal(record.source, np.stack([human, human], axis=1))
    assert record.runs() == [(0, 10), (10, 20), (20, 50)]
    np.testing.assert_array_equal(record.intervention_id, episode.is_human)
    np.testing.assert_array_equal(record.chunk_id, 1 + np.arange(50) // 5)
    np.testing.assert_array_equal(record.chunk_step, np.arange(50) % 5)
    np.testing.assert_array_equal(record.reward, [-1.0] * 49 + [0.0])
    np.testing.assert_array_equal(np.flatnonzero(record.terminated), [49])
    assert not record.truncated.any()
    assert set(record.policy_version) == {"test-0-00000000"}
    # the observation after the last transition
    assert record.final_stamp_ns == episode.stamps_ns[-1]
    np.testing.assert_allclose(record.final_state, episode.state[-1], atol=1e-6)
    np.testing.assert_array_equal(record.final_object_state, episode.objects[-1])
    assert [c.stamp_ns for c in record.chunks] == episode.stamps_ns[:-1:5].tolist()
    np.testing.assert_array_equal(record.chunks[1].positions, np.resize(episode.proposal[5:17], (12, 14)))
    assert [e.event for e in record.events] == [EventType.STARTED, EventType.STOPPED]
    for camera in ("overhead", "left_wrist"):
        for t in (0, 1, 2, 37, 49, 50):
            image = record.image(camera, t)
            assert image.shape == (48, 64, 3)
            np.testing.assert_allclose(image, episode.grey(camera, t), atol=1)
    assert record.image("overhead", 3, (24, 32)).shape == (24, 32, 3)
    for array in (record.state, record.executed, record.proposal, record.object_state):
        assert array.dtype == np.float32


def test_grippers_are_read_as_openings(tmp_path: Path) -> None:
    data = ROBOT.model_dump()
    for arm, (closed, opened) in zip(data["arms"], [(0.8, -0.2), (0.0, 0.05)], strict=True):
        arm["gripper"] |= {"closed": closed, "open": opened}
    robot = RobotDescription.model_validate(data)
    episode = SyntheticEpisode(robot, steps=5)
    episode.write(tmp_path / "e")
    np.testing.assert_allclose(read_episode(tmp_path / "e", robot).state, episode.state[:-1], atol=1e-6)


def test_the_observation_equals_the_live_one(tmp_path: Path) -> None:
    """Messages in the order of arrival through the builder, as a node does, against the bag."""
    episode = SyntheticEpisode(ROBOT, steps=30, cameras=("overhead",))
    info = episode.write(tmp_path / "e")
    record = read_episode(tmp_path / "e", ROBOT)
    live = ObservationBuilder(ROBOT, ("overhead",), (24, 24), use_task_state=True)
    ticks = dict(zip(record.stamps_ns.tolist(), range(30), strict=True))
    compared = 0
    messages = episode.messages(info)
    for (topic, _, message, ns), (_, _, _, after) in zip(messages, [*messages[1:], messages[-1]], strict=True):
        if topic == ROBOT.joint_states_topic:
            live.add_joint_state(ns, message.name, message.position)
        elif topic.endswith("compressed"):
            live.add_image("overhead", ns, message.data)
        elif topic.endswith(names.TASK_STATE):
            live.add_task_state(ns, message.object_state, message.sim_state)
        if after != ns and live.ready(ns) and ns in ticks:
            seen, t = live.build(ns), ticks[ns]
            np.testing.assert_array_equal(seen.state, record.state[t])
            np.testing.assert_array_equal(seen.object_state, record.object_state[t])
            np.testing.assert_array_equal(seen.images["overhead"], record.image("overhead", t, (24, 24)))
            compared += 1
    assert compared == 30


def test_joint_states_faster_than_the_control_rate_are_held(tmp_path: Path) -> None:
    """At 250 Hz the newest measurement not newer than the tick counts, and the final one is within one tick."""
    episode = SyntheticEpisode(ROBOT, steps=10, object_size=0)
    info = episode.info("e")
    messages = without(episode.messages(info), ROBOT.joint_states_topic)
    times = [int(episode.stamps_ns[0]) - 1_000_000 + k * 4_000_000 for k in range(60)]
    for k, ns in enumerate(times):
        position = np.full(14, float(k))
        empty = np.empty(0)
        joints = bag_make(
            "sensor_msgs/msg/JointState",
            header=header_msg(bag_make, ns),
            name=list(ROBOT.action_names),
            position=position,
            velocity=empty,
            effort=empty,
        )
        messages.append((ROBOT.joint_states_topic, "sensor_msgs/msg/JointState", joints, ns))
    write(tmp_path / "e", sorted(messages, key=lambda m: m[3]), info)
    record = read_episode(tmp_path / "e", ROBOT)
    expected = [max(k for k, ns in enumerate(times) if ns <= stamp) for stamp in episode.stamps_ns]
    np.testing.assert_array_equal(record.state[:, 0], expected[:-1])
    assert record.final_state[0] == expected[-1]
    assert episode.stamps_ns[-1] - 4_000_000 < record.final_stamp_ns <= episode.stamps_ns[-1]


def test_joint_states_without_positions_say_nothing(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=10)
    info = episode.info("e")
    messages = episode.messages(info)
    for ns in [int(episode.stamps_ns[4]), int(episode.stamps_ns[-1]) + 1_000]:
        names_of, empty = list(ROBOT.action_names), np.empty(0)
        header, speeds = header_msg(bag_make, ns), np.full(14, 0.1)
        type = "sensor_msgs/msg/JointState"
        moving = bag_make(type, header=header, name=names_of, position=empty, velocity=speeds, effort=empty)
        messages.append((ROBOT.joint_states_topic, type, moving, ns))
    write(tmp_path / "e", sorted(messages, key=lambda m: m[3]), info)
    record = read_episode(tmp_path / "e", ROBOT)
    np.testing.assert_allclose(record.state, episode.state[:-1], atol=1e-6)
    assert record.final_stamp_ns == episode.stamps_ns[-1]
    assert record.problems == []


def test_images_are_those_the_chunk_names(tmp_path: Path) -> None:
    """A policy that saw an older image at a tick of its chunk: the record shows that image there, and the newest one elsewhere."""
    episode = SyntheticEpisode(ROBOT, steps=20, cameras=("overhead",), image_every=1)
    info = episode.info("e")
    messages = episode.messages(info)
    older = int(episode.stamps_ns[3])
    chunk = of_topic(messages, names.CHUNK)[1]  # of tick 5
    chunk.camera_stamps[0] = header_msg(bag_make, older).stamp
    write(tmp_path / "e", messages, info)
    record = read_episode(tmp_path / "e", ROBOT)
    assert record.camera_index["overhead"].tolist() == [0, 1, 2, 3, 4, 3, *range(6, 21)]
    chunk.camera_stamps[0] = header_msg(bag_make, older + 1).stamp  # never recorded
    write(tmp_path / "f", messages, replace(info))
    record = read_episode(tmp_path / "f", ROBOT)
    assert record.camera_index["overhead"].tolist() == list(range(21))
    assert record.problems == ["camera 'overhead': 1 images that the policy used are not in the bag"]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "bgra8"])
def test_raw_images(tmp_path: Path, encoding: str) -> None:
    episode = SyntheticEpisode(ROBOT, steps=4)
    info = episode.info("e")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    stored = {
        "rgb8": pixels,
        "bgr8": pixels[..., ::-1],
        "mono8": pixels[..., 0],
        "bgra8": np.dstack([pixels[..., ::-1], pixels[..., 0]]),
    }[encoding]
    rows = np.ascontiguousarray(stored).reshape(8, -1)
    padded = np.hstack([rows, np.zeros((8, 5), np.uint8)])  # step > width * channels
    image = bag_make(
        "sensor_msgs/msg/Image",
        header=header_msg(bag_make, int(episode.stamps_ns[0])),
        height=8,
        width=12,
        encoding=encoding,
        is_bigendian=0,
        step=padded.shape[1],
        data=padded.reshape(-1),
    )
    topic = ROBOT.camera("overhead").raw_topic
    write(tmp_path / "e", [*episode.messages(info), (topic, "sensor_msgs/msg/Image", image, 5)], info)
    expected = np.repeat(pixels[..., :1], 3, axis=2) if encoding == "mono8" else pixels
    np.testing.assert_array_equal(read_episode(tmp_path / "e", ROBOT).image("overhead", 2), expected)


@pytest.mark.parametrize("storage", ["sqlite3", "mcap", "mcap-message", "mcap-file"])
def test_bags_of_ros2_bag_record(tmp_path: Path, storage: str) -> None:
    """No information of ours in the bag: the episode is known by its transitions, the robot by the caller."""
    episode = SyntheticEpisode(ROBOT, steps=20, cameras=("overhead",))
    plugin = StoragePlugin.SQLITE3 if storage == "sqlite3" else StoragePlugin.MCAP
    writer = Writer(tmp_path / "rosbag2_x", version=9, storage_plugin=plugin)
    if "-" in storage:
        mode = CompressionMode.MESSAGE if storage.endswith("message") else CompressionMode.FILE
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, type, message, ns in episode.messages(episode.info("e")):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, type, typestore=typestore())
            writer.write(connections[topic], ns, typestore().serialize_cdr(message, type))
    record = read_episode(tmp_path / "rosbag2_x", ROBOT)
    assert (record.info.episode_id, record.outcome, record.problems) == ("e", Outcome.SUCCESS, [])
    np.testing.assert_array_equal(record.executed, episode.executed)
    np.testing.assert_allclose(record.image("overhead", 7), episode.grey("overhead", 7), atol=1)
    with pytest.raises(AloeError, match="does not say which robot"):
        read_episode(tmp_path / "rosbag2_x")
    with pytest.raises(AloeError, match="not recorded by ALOE"):
        read_info(tmp_path / "rosbag2_x")


def test_topics_under_a_namespace(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=5, cameras=("overhead",))
    info = episode.info("e")
    messages = [("/cell1" + t, type, m, ns) for t, type, m, ns in episode.messages(info)]
    write(tmp_path / "e", messages, info)
    np.testing.assert_array_equal(read_episode(tmp_path / "e", ROBOT).executed, episode.executed)
    two = messages + [("/cell2" + t, type, m, ns) for t, type, m, ns in episode.messages(info)]
    write(tmp_path / "f", two, info)
    with pytest.raises(AloeError, match=r"may be any of /cell1/joint_states, /cell2/joint_states"):
        read_episode(tmp_path / "f", ROBOT)


def test_labels_given_later_count(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    SyntheticEpisode(ROBOT, steps=5, outcome=Outcome.UNLABELLED).write(folder)
    assert read_labels(folder) == []
    append_label(folder, Label(Outcome.FAILURE, 10, "ada", "dropped it"))
    append_label(folder, Label(Outcome.SUCCESS, 20, "grace"))
    record = read_episode(folder, ROBOT)
    assert record.outcome == Outcome.SUCCESS
    assert record.label == Label(Outcome.SUCCESS, 20, "grace")
    assert len(read_labels(folder)) == 2
    with open(folder / "labels.jsonl", "a") as file:
        file.write('\n{"outcome": "succes"}\n')
    with pytest.raises(AloeError, match=r"labels\.jsonl:4: not a label \(outcome 'succes' is not one of: unlabelled"):
        read_episode(folder, ROBOT)
    with pytest.raises(AloeError, match="cannot label the bag"):
        append_label(tmp_path / "none", Label(Outcome.SUCCESS, 1))


def test_a_label_event_within_the_recording_counts(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=5, outcome=Outcome.UNLABELLED)
    info = episode.info("e")
    messages = episode.messages(info)
    labelled = replace(of_topic(messages, names.EPISODE_EVENT)[1], event=3, outcome=1, termination_reason=0)
    other = replace(labelled, outcome=2, episode_id="another")
    topic = "/" + names.EPISODE_EVENT
    for message in (labelled, other):
        messages.append((topic, "aloe_msgs/msg/EpisodeEvent", message, messages[-1][3]))
    write(tmp_path / "e", messages, info, Outcome.UNLABELLED)
    record = read_episode(tmp_path / "e", ROBOT)
    assert (record.outcome, record.termination) == (Outcome.SUCCESS, Termination.TASK)


def test_what_is_incomplete_is_reported(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=20)
    info = episode.info("e")
    messages = episode.messages(info)
    dropped = {3, 4, 10, 19}
    gappy = [m for m in messages if not (m[0].endswith("transition") and m[2].step in dropped)]
    gappy = [m for m in gappy if not (m[0] == "/joint_states" and m[3] > episode.stamps_ns[18])]
    gappy += [m for m in messages if m[0].endswith("transition") and m[2].step == 5]  # twice
    write(tmp_path / "e", gappy, info)
    record = read_episode(tmp_path / "e", ROBOT)
    assert record.problems == [
        "steps 3 .. 4 are missing",
        "steps 10 .. 10 are missing",
        "the final transition is missing: the last one neither terminates nor truncates the episode",
        "no joint state after the last transition: its observation stands for the final one",
    ]
    assert record.step.tolist() == [k for k in range(19) if k not in dropped]
    assert record.final_stamp_ns == record.stamps_ns[-1]

    write(tmp_path / "f", [m for m in messages if m[0].endswith("transition") and m[2].step > 2] + messages[:4], info)
    assert "the first step is 3, not 0" in read_episode(tmp_path / "f", ROBOT).problems


def test_an_episode_without_transitions_is_empty_not_an_error(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=3, cameras=("overhead",))
    info = episode.info("e")
    write(tmp_path / "e", without(episode.messages(info), names.TRANSITION), info)
    record = read_episode(tmp_path / "e", ROBOT)
    assert len(record) == 0
    assert record.state.shape == (0, 14)
    assert record.runs() == []
    assert record.problems == ["no transitions of episode 'e' on control/transition (found: none at all)"]

    write(tmp_path / "f", episode.messages(replace(info, episode_id="other")), info)
    assert read_episode(tmp_path / "f", ROBOT).problems == [
        "no transitions of episode 'e' on control/transition (found: other)"
    ]


def test_a_proposal_may_be_absent(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=4)
    info = episode.info("e")
    messages = episode.messages(info)
    of_topic(messages, names.TRANSITION)[2].proposal = np.empty(0)
    write(tmp_path / "e", messages, info)
    absent = np.isnan(read_episode(tmp_path / "e", ROBOT).proposal)
    np.testing.assert_array_equal(absent.all(axis=1), [False, False, True, False])
    assert absent.sum() == 14


def test_a_bag_of_another_robot_is_refused_by_name(tmp_path: Path) -> None:
    SyntheticEpisode(ROBOT, steps=3).write(tmp_path / "e")
    other = load_robot("bimanual_ur5e")
    with pytest.raises(AloeError, match=rf"robot 'aloha_sim' \(hash {ROBOT.hash}\), not with '{other.name}'"):
        read_episode(tmp_path / "e", other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"executed": np.zeros(13)}, r"control/transition: step 1: executed has 13 numbers, not 14"),
        ({"executed": np.full(14, np.nan)}, r"control/transition: step 1: the executed action is not finite"),
        ({"source": np.array([1, 9], np.uint8)}, r"step 1: source 9 is unknown"),
        ({"source": np.zeros(3, np.uint8)}, r"step 1: source has 3 numbers, not 2"),
        ({"proposal": np.zeros(2)}, r"step 1: proposal has 2 numbers"),
        ({"arm_names": ["one"]}, r"arms \['one'\]"),
    ],
)
def test_transitions_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    episode = SyntheticEpisode(ROBOT, steps=3)
    info = episode.info("e")
    messages = episode.messages(info)
    for key, value in change.items():
        setattr(of_topic(messages, names.TRANSITION)[1], key, value)
    write(tmp_path / "e", messages, info)
    with pytest.raises(AloeError, match=sentence):
        read_episode(tmp_path / "e", ROBOT)


def test_a_chunk_that_does_not_fit_is_a_problem_not_an_error(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=10)
    info = episode.info("e")
    messages = episode.messages(info)
    of_topic(messages, names.CHUNK)[0].horizon = 5
    write(tmp_path / "e", messages, info)
    record = read_episode(tmp_path / "e", ROBOT)
    assert record.problems == ["policy/chunk: chunk 1 has 168 numbers, not 5 rows of 14"]
    assert len(record.chunks) == 1


def test_a_joint_state_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=4)
    info = episode.info("e")
    messages = episode.messages(info)
    of_topic(messages, "joint_states")[2].position[3] = np.nan
    write(tmp_path / "e", messages, info)
    with pytest.raises(AloeError, match=r"/joint_states: the joint state at 1040000000 ns is not finite"):
        read_episode(tmp_path / "e", ROBOT)


def test_missing_sources_are_named(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=4, cameras=("overhead",))
    info = episode.info("e")
    messages = episode.messages(info)
    write(tmp_path / "e", without(messages, "joint_states"), info)
    with pytest.raises(AloeError, match=r"no joint state of 'left_waist' .* on /joint_states"):
        read_episode(tmp_path / "e", ROBOT)
    record_folder = tmp_path / "f"
    late = [m for m in messages if not (m[0].endswith("compressed") and m[3] == episode.stamps_ns[0])]
    write(record_folder, late, info)
    record = read_episode(record_folder, ROBOT)
    assert "camera 'overhead': no image for the first 2 ticks" in record.problems
    with pytest.raises(AloeError, match="no image up to tick 1"):
        record.image("overhead", 1)
    with pytest.raises(AloeError, match="no images of camera 'left_wrist'; it has: overhead"):
        record.image("left_wrist", 0)


def test_a_broken_image_names_bag_and_topic(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=2)
    info = episode.info("e")
    topic = ROBOT.camera("overhead").compressed_topic
    image = compressed_image_msg(bag_make, int(episode.stamps_ns[0]), "c", b"not a picture")
    write(tmp_path / "e", [*episode.messages(info), (topic, "sensor_msgs/msg/CompressedImage", image, 9)], info)
    with pytest.raises(AloeError, match=r"e: /overhead/image_raw/compressed: 13 bytes that are not a JPEG"):
        read_episode(tmp_path / "e", ROBOT).image("overhead", 0)


def test_png_images(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=2)
    info = episode.info("e")
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    topic = ROBOT.camera("overhead").compressed_topic
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    image = compressed_image_msg(bag_make, int(episode.stamps_ns[0]), "c", png)
    write(tmp_path / "e", [*episode.messages(info), (topic, "sensor_msgs/msg/CompressedImage", image, 9)], info)
    np.testing.assert_array_equal(read_episode(tmp_path / "e", ROBOT).image("overhead", 0), pixels)


def test_another_version_of_a_message_is_refused(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=2)
    episode.write(tmp_path / "e")
    file = tmp_path / "e" / "metadata.yaml"
    good = typestore().hash_rihs01("aloe_msgs/msg/Transition")
    assert good in file.read_text()
    file.write_text(file.read_text().replace(good, "RIHS01_" + "0" * 64))
    with pytest.raises(
        AloeError, match="/control/transition was recorded with another version of aloe_msgs/msg/Transition"
    ):
        read_episode(tmp_path / "e", ROBOT)


def test_iterations_of_policy_versions(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=3, policy_version="pack-4-0123abcd")
    info = episode.info("e")
    messages = episode.messages(info)
    write(tmp_path / "named", messages, info)
    assert read_episode(tmp_path / "named", ROBOT).iterations == {"pack-4-0123abcd": 4}
    write(tmp_path / "noted", messages, replace(info, iteration=7))
    assert read_episode(tmp_path / "noted", ROBOT).iterations == {"pack-4-0123abcd": 7}
    announced = bag_make(
        "aloe_msgs/msg/PolicyVersion",
        header=header_msg(bag_make, 1),
        version="pack-4-0123abcd",
        path="",
        sha256="",
        robot_hash="",
        iteration=9,
        parent_version="",
        method="aloe",
    )
    topic = "/" + names.POLICY_VERSION
    write(tmp_path / "announced", [(topic, "aloe_msgs/msg/PolicyVersion", announced, 1), *messages], info)
    assert read_episode(tmp_path / "announced", ROBOT).iterations == {"pack-4-0123abcd": 9}
    assert [iteration_of(v) for v in ("scripted", "", "a-b-3-00000000", "a-3-0000000g", "3-00000000")] == [
        None,
        None,
        3,
        None,
        None,
    ]


def test_messages_that_make_no_sense_name_bag_and_topic(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=3)
    info = episode.info("e")

    def refused(name: str, messages: Messages, sentence: str) -> None:
        write(tmp_path / name, messages, info)
        with pytest.raises(AloeError, match=rf"bag .*{name}.*{sentence}"):
            read_episode(tmp_path / name, ROBOT).image("overhead", 0)

    messages = episode.messages(info)
    of_topic(messages, "joint_states")[0].position = np.zeros(3)
    refused("joints", messages, "/joint_states: joint state has 14 names but 3 positions")
    messages = episode.messages(info)
    of_topic(messages, names.EPISODE_EVENT)[1].outcome = 9
    refused("event", messages, "/episode/event: 9 is not a valid Outcome")
    messages = [(t.replace("/joint_states", f"/{names.TRANSITION}"), *rest) for t, *rest in episode.messages(info)[:2]]
    refused("type", messages, "control/transition has type sensor_msgs/msg/JointState, not aloe_msgs/msg/Transition")

    def image(**fields: Any) -> Messages:
        values = {
            "height": 2,
            "width": 2,
            "encoding": "rgb8",
            "is_bigendian": 0,
            "step": 6,
            "data": np.zeros(12, np.uint8),
        }
        message = bag_make("sensor_msgs/msg/Image", header=header_msg(bag_make, 10**9), **(values | fields))
        return [*episode.messages(info), (ROBOT.camera("overhead").raw_topic, "sensor_msgs/msg/Image", message, 5)]

    refused("depth", image(encoding="16UC1"), "image encoding '16UC1' is not one of: rgb8, bgr8")
    refused("short", image(data=np.zeros(5, np.uint8)), "5 bytes are not an image of 2 x 2 rgb8")
    refused("empty", image(height=0), "12 bytes are not an image of 0 x 2 rgb8")


def test_custom_data_that_make_no_sense(tmp_path: Path) -> None:
    SyntheticEpisode(ROBOT, steps=2).write(tmp_path / "e")
    file = tmp_path / "e" / "metadata.yaml"
    text = file.read_text()
    file.write_text(text.replace("outcome: success", "outcome: victory"))
    with pytest.raises(AloeError, match="custom data: outcome 'victory' is not one of"):
        read_episode(tmp_path / "e", ROBOT)
    file.write_text(text.replace("seed: '0'", "seed: none"))
    with pytest.raises(AloeError, match="seed is 'none', not a number"):
        read_episode(tmp_path / "e", ROBOT)


def test_several_episodes_in_one_bag_are_refused(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=2)
    messages = [m for name in ("a", "b") for m in episode.messages(episode.info(name))]
    write(tmp_path / "e", messages, EpisodeInfo(""))
    with pytest.raises(AloeError, match="holds several episodes: a, b; record one bag per episode"):
        read_episode(tmp_path / "e", ROBOT)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=2)
    write(tmp_path / "e", episode.messages(episode.info("e")), replace(episode.info("e"), format_version=99))
    with pytest.raises(AloeError, match="written in format 99"):
        read_episode(tmp_path / "e", ROBOT)


def test_iter_messages(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=6)
    info = episode.write(tmp_path / "e")
    messages = list(iter_messages(tmp_path / "e", ["control/transition", "/joint_states"]))
    assert [m.message.step for m in messages if m.topic == "/control/transition"] == list(range(6))
    assert sum(m.type == "sensor_msgs/msg/JointState" for m in messages) == 7
    assert [m.log_time_ns for m in messages] == sorted(m.log_time_ns for m in messages)
    assert len(list(iter_messages(tmp_path / "e"))) == len(episode.messages(info))
    with pytest.raises(AloeError, match="no topic /wrong; it has: /episode/event"):
        list(iter_messages(tmp_path / "e", ["/wrong"]))


def test_finding_bags(tmp_path: Path) -> None:
    for name in ("b/e2", "a/e1", "discarded/e0", "c/e3"):
        BagWriter(tmp_path / name, EpisodeInfo("e")).close()
    (tmp_path / "c" / "e3" / "metadata.yaml").unlink()  # killed
    (tmp_path / "empty").mkdir()
    one, two, three = (tmp_path / p for p in ("a/e1", "b/e2", "c/e3"))
    assert find_bags([tmp_path]) == [one, two, three]
    assert find_bags([two, str(tmp_path / "*")]) == [two, tmp_path / "a" / "e1", three, tmp_path / "discarded/e0"]
    assert find_bags([one / "e1_0.mcap"]) == [one]
    for wrong in (tmp_path / "empty", tmp_path / "nothing", str(tmp_path / "x*")):
        with pytest.raises(AloeError, match="no bags in"):
            find_bags([one, wrong])
    with pytest.raises(AloeError, match="name at least one bag"):
        find_bags([])


def test_a_file_that_metadata_names_must_be_there(tmp_path: Path) -> None:
    SyntheticEpisode(ROBOT, steps=2).write(tmp_path / "e")
    (tmp_path / "e" / "e_0.mcap").unlink()
    with pytest.raises(AloeError, match=r"metadata.yaml names e_0.mcap, which is missing"):
        read_episode(tmp_path / "e", ROBOT)
    metadata = tmp_path / "e" / "metadata.yaml"
    for impossible in ("x" * 1000, '"a\\0b"'):
        metadata.write_text(metadata.read_text().replace("- e_0.mcap", f"- {impossible}"))
        with pytest.raises(AloeError, match="which is missing"):
            read_episode(tmp_path / "e", ROBOT)
        metadata.write_text(metadata.read_text().replace(f"- {impossible}", "- e_0.mcap"))


def test_a_bag_in_several_files(tmp_path: Path) -> None:
    """`ros2 bag record` may split: the files are read one after the other."""
    import yaml

    episode = SyntheticEpisode(ROBOT, steps=10, cameras=("overhead",))
    info = episode.info("e")
    messages = episode.messages(info)
    write(tmp_path / "e", messages[:40], info)
    write(tmp_path / "f", messages[40:], info)
    (tmp_path / "f" / "f_0.mcap").rename(tmp_path / "e" / "e_1.mcap")
    file = tmp_path / "e" / "metadata.yaml"
    data = yaml.safe_load(file.read_text())
    data["rosbag2_bagfile_information"]["relative_file_paths"].append("e_1.mcap")
    file.write_text(yaml.safe_dump(data))
    record = read_episode(tmp_path / "e", ROBOT)
    np.testing.assert_array_equal(record.executed, episode.executed)
    np.testing.assert_allclose(record.image("overhead", 9), episode.grey("overhead", 9), atol=1)


def test_a_chunk_that_was_published_twice_is_one_chunk(tmp_path):
    rows = np.zeros((50, ROBOT.action_dim), np.float32)
    chunks = [ActionChunk(5, rows, ROBOT.control_dt_ns, number, 1, "p", "e1") for number in (1, 1, 2)]
    content = EpisodeContent(tmp_path, ROBOT, "e1")
    content.chunk_messages = [chunk_msg(bag_make, chunk, ROBOT) for chunk in chunks]
    assert [chunk.chunk_id for chunk in content.chunks()] == [1, 2]
