"""policy_node as a process: answers requests from the observation they name, waits for it, and changes policies safely."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import HORIZON, make_policy

from aloe_core import topics
from aloe_core.messages import chunk_from_msg, header_msg, joint_state_msg, ros_make
from aloe_core.observation import Observation
from aloe_core.policy import load_policy, request_generator
from aloe_core.robot import load_robot

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

ROBOT = load_robot("aloha_sim")
SEED, STEP = 7, ROBOT.control_dt_ns
WAIT = 90.0  # [s] a loaded machine may be slow; nothing here depends on how slow


class Robot:
    """The other side: sensors, the control loop's requests, and what policy_node says."""

    def __init__(self) -> None:
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import JointState

        from aloe_msgs.msg import ActionChunk, ChunkRequest, PolicyStatus, PolicyVersion, TaskState

        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node = rclpy.create_node("robot_stand_in")
        self.joints = self.node.create_publisher(JointState, ROBOT.joint_states_topic, 10)
        self.task = self.node.create_publisher(TaskState, topics.TASK_STATE, 10)
        self.requests = self.node.create_publisher(ChunkRequest, topics.CHUNK_REQUEST, 10)
        self.versions = self.node.create_publisher(PolicyVersion, topics.POLICY_VERSION, latched)
        self.chunks: list = []
        self.status = PolicyStatus()
        self.node.create_subscription(ActionChunk, topics.CHUNK, self.chunks.append, 10)
        self.node.create_subscription(PolicyStatus, topics.POLICY_STATUS, self._on_status, latched)

    def _on_status(self, message) -> None:
        self.status = message

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, f"timed out; status: {self.status}"
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def observe(self, stamp_ns: int) -> Observation:
        """Publishes joints and task state of an instant; the observation they make."""
        state = np.linspace(0, 1, 14) + stamp_ns / 1e10
        objects = np.arange(7.0)
        self.joints.publish(joint_state_msg(ros_make, stamp_ns, ROBOT.action_names, ROBOT.to_device(state)))
        task = ros_make("aloe_msgs/msg/TaskState", header=header_msg(ros_make, stamp_ns), object_state=objects)
        self.task.publish(task)
        return Observation(stamp_ns, state.astype(np.float32), object_state=objects.astype(np.float32))

    def request(self, stamp_ns: int, number: int, prefix: Sequence[float] = ()) -> None:
        fields = {"header": header_msg(ros_make, stamp_ns), "episode_id": "e", "request_id": number, "prefix": prefix}
        self.requests.publish(ros_make("aloe_msgs/msg/ChunkRequest", **fields))

    def answer(self):
        """The next chunk."""
        count = len(self.chunks)
        self.until(lambda: len(self.chunks) > count)
        return chunk_from_msg(self.chunks[-1], ROBOT)


@pytest.fixture
def robot(ros_domain: int) -> Iterator[Robot]:
    rclpy.init()
    robot = Robot()
    yield robot
    robot.node.destroy_node()
    rclpy.try_shutdown()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_requests_are_answered_and_policies_change_between_them(robot: Robot, start_node, tmp_path: Path) -> None:
    hashes = {name: make_policy(ROBOT).save(tmp_path / name, name) for name in ("bc-0", "bc-1")}
    versions = {name: f"{name}-{sha256[:8]}" for name, sha256 in hashes.items()}
    start_node("aloe_policy", "policy_node", {"policy": str(tmp_path / "bc-0"), "seed": SEED, "max_wait": 60.0})
    robot.until(lambda: robot.status.version == versions["bc-0"])
    robot.until(
        lambda: all(p.get_subscription_count() for p in (robot.joints, robot.task, robot.requests, robot.versions))
    )
    robot.until(lambda: robot.node.count_publishers(topics.CHUNK) == 1)

    observation = robot.observe(STEP)
    robot.request(STEP, 1)
    chunk = robot.answer()
    expected = load_policy(str(tmp_path / "bc-0"), ROBOT).propose(observation, request_generator(SEED, "e", 1))
    np.testing.assert_allclose(chunk.positions, expected, atol=1e-5)
    assert (chunk.stamp_ns, chunk.request_id, chunk.episode_id) == (STEP, 1, "e")
    assert (chunk.policy_version, chunk.horizon, chunk.dt_ns) == (versions["bc-0"], HORIZON, STEP)
    assert chunk.inference_latency_s > 0

    first = robot.chunks[-1]
    robot.request(STEP, 1)  # asked again, for the answer may have been lost: the same chunk, not another one
    robot.answer()
    assert robot.chunks[-1] == first

    robot.request(2 * STEP, 2)  # its observation does not exist yet: the request waits for it
    seen = len(robot.chunks)
    for _ in range(20):
        rclpy.spin_once(robot.node, timeout_sec=0.02)
    assert len(robot.chunks) == seen
    robot.observe(2 * STEP)
    assert robot.answer().stamp_ns == 2 * STEP

    def announce(name: str, sha256: str) -> None:
        fields = {"version": versions[name], "path": str(tmp_path / name), "sha256": sha256, "robot_hash": ROBOT.hash}
        robot.versions.publish(ros_make("aloe_msgs/msg/PolicyVersion", **fields))

    announce("bc-1", "0" * 64)
    robot.until(lambda: robot.status.rejected_version == versions["bc-1"])
    assert "announced was 00000000" in robot.status.message
    robot.observe(3 * STEP)
    robot.request(3 * STEP, 3)
    assert robot.answer().policy_version == versions["bc-0"]

    announce("bc-1", hashes["bc-1"])
    robot.until(lambda: robot.status.version == versions["bc-1"])
    robot.observe(4 * STEP)
    robot.request(4 * STEP, 4)
    assert robot.answer().policy_version == versions["bc-1"]
    robot.until(lambda: robot.status.chunks == 4)
    assert 0 < robot.status.latency_p50 <= robot.status.latency_p99


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_messages_that_do_not_fit_do_not_end_the_node(robot: Robot, start_node, tmp_path: Path) -> None:
    make_policy(ROBOT).save(tmp_path / "bc-0", "bc-0")
    node = start_node("aloe_policy", "policy_node", {"policy": str(tmp_path / "bc-0"), "max_wait": 60.0})
    robot.until(lambda: robot.status.version != "")
    robot.until(lambda: all(p.get_subscription_count() for p in (robot.joints, robot.task, robot.requests)))
    robot.until(lambda: robot.node.count_publishers(topics.CHUNK) == 1)

    def joints(**fields: object) -> None:
        header = header_msg(ros_make, STEP)
        robot.joints.publish(ros_make("sensor_msgs/msg/JointState", header=header, name=ROBOT.action_names, **fields))

    joints(velocity=[0.1] * 14)
    joints(position=[0.1] * 13)
    node.wait_for(r"WARN.*/joint_states: joint state has 14 names but 13 positions")
    robot.request(STEP, 1, prefix=[0.0] * 13)
    node.wait_for("ERROR.*request 1: a prefix of 13 numbers is not rows of 14")
    robot.observe(STEP)
    robot.request(STEP, 2, prefix=[0.0] * 14)
    assert robot.answer().request_id == 2
    assert node.stop() == 0
