"""policy_node as a process: answers requests from the observation they name, waits for it, and changes policies safely."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import HORIZON, make_policy
from test_remote import Running

from aloe_core import topics
from aloe_core.messages import (
    chunk_from_msg,
    compressed_image_msg,
    header_msg,
    joint_state_msg,
    ros_make,
    stamp_to_ns,
    time_msg,
)
from aloe_core.observation import Observation
from aloe_core.policy import load_policy, request_generator
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode

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

    def until(self, condition: Callable[[], bool], repeat: Callable[[], None] = lambda: None) -> None:
        """Waits; `repeat` says again, now and then, what a best-effort subscription may have missed before it had discovered this side."""
        deadline, turn = time.monotonic() + WAIT, 0
        while not condition():
            assert time.monotonic() < deadline, f"timed out; status: {self.status}"
            rclpy.spin_once(self.node, timeout_sec=0.05)
            turn += 1
            if turn % 20 == 0:
                repeat()

    def observe(self, stamp_ns: int) -> Observation:
        """Publishes joints and task state of an instant; the observation they make."""
        state = np.linspace(0, 1, 14) + stamp_ns / 1e10
        objects = np.arange(7.0)
        self.joints.publish(joint_state_msg(ros_make, stamp_ns, ROBOT.action_names, ROBOT.to_device(state)))
        task = ros_make("aloe_msgs/msg/TaskState", header=header_msg(ros_make, stamp_ns), object_state=objects)
        self.task.publish(task)
        return Observation(stamp_ns, state.astype(np.float32), object_state=objects.astype(np.float32))

    def announce(self, folder: Path, version: str, sha256: str) -> None:
        fields = {"version": version, "path": str(folder), "sha256": sha256, "robot_hash": ROBOT.hash}
        self.versions.publish(ros_make("aloe_msgs/msg/PolicyVersion", **fields))

    def change(self, *transitions: int) -> None:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        client = self.node.create_client(ChangeState, "policy_node/change_state")
        self.until(client.service_is_ready)
        for transition in transitions:
            future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            self.until(future.done)
            assert future.result().success
        self.node.destroy_client(client)

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
    robot.request(STEP, 1)  # also after another one: in a replay both may have been lost
    robot.answer()
    assert robot.chunks[-1] == first

    robot.announce(tmp_path / "bc-1", versions["bc-1"], "0" * 64)
    robot.until(lambda: robot.status.rejected_version == versions["bc-1"])
    assert "announced was 00000000" in robot.status.message
    robot.observe(3 * STEP)
    robot.request(3 * STEP, 3)
    assert robot.answer().policy_version == versions["bc-0"]

    robot.announce(tmp_path / "bc-1", versions["bc-1"], hashes["bc-1"])
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


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", ["bc-0", ""])
def test_nothing_of_a_policy_outlives_a_cleanup(robot: Robot, start_node, tmp_path: Path, first: str) -> None:
    """Configured again, the node drives by the policy that was announced last, and each topic has one publisher."""
    from lifecycle_msgs.msg import Transition

    hashes = {name: make_policy(ROBOT).save(tmp_path / name, name) for name in ("bc-0", "bc-1")}
    version = f"bc-1-{hashes['bc-1'][:8]}"
    start_node(
        "aloe_policy", "policy_node", {"policy": str(tmp_path / first) if first else "", "seed": SEED, "max_wait": 60.0}
    )
    if first:
        robot.until(lambda: robot.status.version.startswith(first))
    robot.announce(tmp_path / "bc-1", version, hashes["bc-1"])
    robot.until(lambda: robot.status.version == version)
    robot.change(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
    robot.until(lambda: robot.node.count_publishers(topics.CHUNK) == 0)
    robot.until(lambda: robot.node.count_publishers(topics.POLICY_STATUS) == 0)
    robot.change(Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
    robot.until(lambda: robot.node.count_publishers(topics.CHUNK) == 1)
    robot.until(lambda: all(p.get_subscription_count() for p in (robot.joints, robot.task, robot.requests)))
    number = 0
    while not robot.chunks or robot.chunks[-1].policy_version != version:
        number += 1  # asked too early it is `first` that answers
        robot.observe(number * STEP)
        robot.request(number * STEP, number)
        robot.answer()
    assert robot.status.version == version


def test_the_policy_announced_last_answers(ros_domain: int, tmp_path: Path) -> None:
    """Also if another one is still loading, and this one answered before."""
    from aloe_msgs.msg import PolicyVersion
    from aloe_policy.nodes.policy_node import PolicyNode

    hashes = {name: make_policy(ROBOT).save(tmp_path / name, name) for name in ("bc-0", "bc-1")}
    old, new = (PolicyVersion(version=f"{n}-{h[:8]}", path=str(tmp_path / n), sha256=h) for n, h in hashes.items())
    rclpy.init()
    node = PolicyNode()
    try:
        node.configure()
        node._on_version(old)
        while node._policy is None:
            time.sleep(0.01)
        node._on_version(new)
        node._on_version(old)
        node._worker.stop()  # ends when all of them were loaded
        assert node._policy.version == old.version
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_diagnostics_tell_how_stale_the_data_of_a_chunk_were(robot: Robot, start_node) -> None:
    from diagnostic_msgs.msg import DiagnosticArray
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CompressedImage

    told: list[dict[str, str]] = []

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            values = {v.key: v.value for v in status.values}
            told.append({"name": status.name, "now": str(stamp_to_ns(message.header.stamp)), **values})

    robot.node.create_subscription(DiagnosticArray, topics.DIAGNOSTICS, on_diagnostics, 10)
    clock = robot.node.create_publisher(Clock, "/clock", 10)
    topic = ROBOT.camera("overhead").compressed_topic
    images = robot.node.create_publisher(CompressedImage, topic, 10)
    server = Running()
    try:
        parameters = {"policy": f"remote:{server.url}", "max_wait": 60.0, "use_sim_time": True}
        start_node("aloe_policy", "policy_node", parameters)
        publishers = (robot.joints, robot.task, robot.requests, images, clock)
        robot.until(lambda: all(p.get_subscription_count() for p in publishers))
        robot.until(lambda: robot.node.count_publishers(topics.CHUNK) == 1)
        for number, (image_ms, wait_ms) in enumerate(((15, 250), (5, 60)), start=1):
            stamp = number * 1_000_000_000
            now = stamp + wait_ms * 1_000_000
            tell = partial(clock.publish, Clock(clock=time_msg(ros_make, now)))
            tell()
            robot.until(lambda now=now: bool(told) and told[-1]["now"] == str(now), repeat=tell)
            if number == 1:
                assert "observation_age_s" not in told[-1]
            jpeg = SyntheticEpisode(ROBOT).jpeg("overhead", number)
            image = compressed_image_msg(ros_make, stamp - image_ms * 1_000_000, "overhead", jpeg)

            def show(image=image, stamp=stamp) -> None:
                images.publish(image)
                robot.observe(stamp)

            show()
            robot.request(stamp, number)
            robot.until(lambda number=number: told[-1]["chunks"] == str(number), repeat=show)
            assert told[-1]["name"] == "policy_node"
            assert float(told[-1]["image_age_s"]) == pytest.approx(image_ms / 1000)
            assert float(told[-1]["observation_age_s"]) == pytest.approx(wait_ms / 1000)
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_went_away_and_came_back_answers_the_same_request(robot: Robot, start_node) -> None:
    from sensor_msgs.msg import CompressedImage

    images = robot.node.create_publisher(CompressedImage, ROBOT.camera("overhead").compressed_topic, 10)
    server = Running()
    node = start_node("aloe_policy", "policy_node", {"policy": f"remote:{server.url}", "max_wait": 60.0})
    publishers = (robot.joints, robot.task, robot.requests, images)
    robot.until(lambda: all(p.get_subscription_count() for p in publishers))
    robot.until(lambda: robot.node.count_publishers(topics.CHUNK) == 1)
    server.stop()
    images.publish(compressed_image_msg(ros_make, STEP, "overhead", SyntheticEpisode(ROBOT).jpeg("overhead", 0)))
    robot.observe(STEP)
    robot.request(STEP, 1)
    node.wait_for("request 1: .*cannot be reached")
    server = Running(port=server.server.port)
    try:
        robot.request(STEP, 1)
        assert robot.answer().request_id == 1
    finally:
        server.stop()
