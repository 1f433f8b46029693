"""Messages made for ROS and for bags are the same bytes, and conversions invert each other."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_core import messages
from aloe_core.chunk import ActionChunk
from aloe_core.errors import AloeError
from aloe_core.messages import (
    bag_make,
    chunk_from_msg,
    chunk_msg,
    compressed_image_msg,
    joint_state_msg,
    ros_make,
    stamp_to_ns,
    time_msg,
)
from aloe_core.robot import load_robot

ROBOT = load_robot("aloha_sim")


def chunk(horizon: int = 5) -> ActionChunk:
    return ActionChunk(
        stamp_ns=1_234_567_890_123,
        positions=np.random.default_rng(0).uniform(-1, 1, (horizon, 14)).astype(np.float32),
        dt_ns=20_000_000,
        chunk_id=7,
        request_id=3,
        policy_version="run-1-abcdef01",
        episode_id="e",
        inference_latency_s=0.012,
        camera_stamps_ns={"overhead": 1_234_560_000_000, "left_wrist": 1},
    )


def assert_equal_chunks(a: ActionChunk, b: ActionChunk) -> None:
    np.testing.assert_array_equal(a.positions, b.positions)
    for name in ("stamp_ns", "dt_ns", "chunk_id", "request_id", "policy_version", "episode_id", "inference_latency_s"):
        assert getattr(a, name) == getattr(b, name)
    assert dict(a.camera_stamps_ns) == dict(b.camera_stamps_ns)


@given(ns=st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
def test_time_round_trip(ns: int) -> None:
    message = time_msg(bag_make, ns)
    assert 0 <= message.nanosec < 10**9
    assert stamp_to_ns(message) == ns


@pytest.mark.parametrize("make", [bag_make, "ros"])
def test_chunk_round_trip(make: Any) -> None:
    if make == "ros":
        pytest.importorskip("rclpy")
        make = ros_make
    assert_equal_chunks(chunk_from_msg(chunk_msg(make, chunk(), ROBOT), ROBOT), chunk())


def over_the_wire(message: Any) -> bytes:
    """What a subscription with `raw=True`, hence a recorder, is given. (`rclpy.serialization` pads the end; DDS does not.)"""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    received: list[bytes] = []
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("wire", context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        publisher = node.create_publisher(type(message), "/wire", 1)
        node.create_subscription(type(message), "/wire", received.append, 1, raw=True)
        while not publisher.get_subscription_count():
            executor.spin_once(timeout_sec=0.05)
        publisher.publish(message)
        while not received:
            executor.spin_once(timeout_sec=0.05)
    finally:
        rclpy.shutdown(context=context)
    return received[0]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda make: chunk_msg(make, chunk(), ROBOT), "aloe_msgs/msg/ActionChunk"),
        (
            lambda make: joint_state_msg(make, 5, ROBOT.action_names, np.arange(14.0), np.ones(14)),
            "sensor_msgs/msg/JointState",
        ),
        (lambda make: compressed_image_msg(make, 5, "frame", b"\xff\xd8jpeg"), "sensor_msgs/msg/CompressedImage"),
    ],
)
def test_ros_and_bag_messages_are_the_same_on_the_wire(ros_domain: int, build: Any, name: str) -> None:
    store = messages.typestore()
    ros = over_the_wire(build(ros_make))
    ours = store.serialize_cdr(build(bag_make), name).tobytes()
    assert len(ros) == len(ours)
    assert store.serialize_cdr(store.deserialize_cdr(ros, name), name).tobytes() == ours  # padding inside is undefined


@pytest.mark.parametrize("length", [0, 3])
def test_empty_vectors_do_not_shift_what_follows(ros_domain: int, length: int) -> None:
    """An empty float64[] in front of other fields is where serializers of CDR may differ in alignment."""
    from aloe_msgs.msg import Transition

    store, name = messages.typestore(), "aloe_msgs/msg/Transition"
    ros = Transition(step=5, arm_names=["l"], source=[2], executed=[0.5] * length, chunk_id=77, chunk_step=4)
    ros.policy_version, ros.reward, ros.terminated = "v", -1.0, True
    read = store.deserialize_cdr(over_the_wire(ros), name)
    assert (read.step, read.chunk_id, read.chunk_step, read.policy_version) == (5, 77, 4, "v")
    assert (read.arm_names, read.executed.tolist(), read.terminated) == (["l"], [0.5] * length, True)
    assert len(read.proposal) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"joint_names": ["a"]}, r"chunk 7 is for joints \['a'\], the robot 'aloha_sim' has"),
        ({"horizon": 4}, "chunk 7 has 70 numbers, not 4 rows of 14"),
        ({"horizon": 0}, "chunk 7 has 70 numbers, not 0 rows"),
        ({"dt": 0.0}, "chunk 7 has a time step of 0.0 s"),
        ({"dt": float("nan")}, "chunk 7 has a time step of nan s"),
        ({"dt": float("inf")}, "chunk 7 has a time step of inf s"),
        ({"camera_stamps": []}, "chunk 7 has 2 camera names but 0 camera stamps"),
        ({"camera_names": ["overhead"]}, "chunk 7 has 1 camera names but 2 camera stamps"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str) -> None:
    message = chunk_msg(bag_make, chunk(), ROBOT)
    for key, value in change.items():
        setattr(message, key, value)
    with pytest.raises(AloeError, match=sentence):
        chunk_from_msg(message, ROBOT)


def test_chunk_rows_are_for_times() -> None:
    c = chunk(horizon=3)
    start, dt = c.stamp_ns, c.dt_ns
    assert c.horizon == 3
    rows = [c.row_at(t) for t in (start - 1, start, start + dt - 1, start + dt, start + 3 * dt)]
    assert rows == [-1, 0, 0, 1, 3]
    with pytest.raises(AloeError, match=r"needs positions \[horizon, action\]"):
        ActionChunk(0, np.zeros(14, np.float32), dt, 1)
    with pytest.raises(AloeError, match="not an array of shape"):
        ActionChunk(0, np.zeros((0, 14), np.float32), dt, 1)
    with pytest.raises(AloeError, match="positive time step, not 0 ns"):
        ActionChunk(0, np.zeros((1, 14), np.float32), 0, 1)


def test_every_message_of_ours_is_known() -> None:
    names = {f.stem for f in (messages.INTERFACES / "msg").glob("*.msg")}
    assert {"ActionChunk", "Transition", "EpisodeEvent", "RecorderStatus"} <= names
    for name in names:
        assert f"aloe_msgs/msg/{name}" in messages.typestore().types
        messages.typestore().generate_msgdef(f"aloe_msgs/msg/{name}", ros_version=2)


def test_missing_definitions_are_an_installation_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "INTERFACES", tmp_path)
    messages.typestore.cache_clear()
    try:
        with pytest.raises(AloeError, match="reinstall aloe_core"):
            messages.typestore()
    finally:
        messages.typestore.cache_clear()
