"""camera_node as a process: a real video file in, topics and diagnostics out."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402

from aloe_core.messages import stamp_to_ns  # noqa: E402
from aloe_core.observation import decode_image  # noqa: E402
from aloe_core.supervisor import ros_arguments  # noqa: E402
from aloe_robot.nodes.camera_node import CameraNode  # noqa: E402

CONFIG = Path(__file__).resolve().parents[3] / "config"
PROFILE, CALIBRATION = CONFIG / "fastdds_large_images.xml", CONFIG / "cameras" / "example_640x480.yaml"


class Listener:
    """Collects the messages of a few topics in a thread of its own."""

    def __init__(self, **topics: tuple[type, str]) -> None:
        self.context = rclpy.Context()
        self.context.init()
        self.node = rclpy.create_node("listener", context=self.context)
        self.got: dict[str, list] = {name: [] for name in topics}
        self._grew = threading.Condition()
        for name, (kind, topic) in topics.items():
            self.node.create_subscription(kind, topic, lambda m, n=name: self._add(n, m), qos_profile_sensor_data)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._closing = False
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self) -> None:
        while not self._closing:
            self.executor.spin_once(timeout_sec=0.1)

    def _add(self, name: str, message) -> None:
        with self._grew:
            self.got[name].append(message)
            self._grew.notify_all()

    def wait(self, predicate, timeout: float = 60.0):
        """What `predicate(self.got)` returns once it is true."""
        deadline = time.monotonic() + timeout
        with self._grew:
            while not (result := predicate(self.got)):
                if not self._grew.wait(max(0.0, deadline - time.monotonic())):
                    pytest.fail(
                        f"nothing suitable after {timeout} s; messages: { {k: len(v) for k, v in self.got.items()} }"
                    )
            return result

    def close(self) -> None:
        self._closing = True  # what a thread waits for must not be destroyed under it
        self.thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def listen(ros_domain):
    opened: list[Listener] = []

    def start(**topics: tuple[type, str]) -> Listener:
        opened.append(Listener(**topics))
        return opened[-1]

    yield start
    for listener in opened:
        listener.close()


@pytest.fixture
def robot(tmp_path) -> Path:
    path = tmp_path / "one_camera.yaml"
    path.write_text(
        """
name: one_camera
arms:
  - name: left
    joints: [{name: waist, min: -1, max: 1, max_velocity: 1, max_acceleration: 10, max_jerk: 100}]
    output: {topic: /left_controller/commands}
cameras:
  - {name: overhead, topic: /overhead, frame_id: optical, width: 64, height: 48, rate_hz: 50, source: /dev/video97}
"""
    )
    return path


def write_video(path: Path) -> None:
    """The file is there at once and as a whole."""
    unfinished = path.with_name("unfinished.avi")
    writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    for k in range(10):
        writer.write(np.full((48, 64, 3), (20 * k, 100, 200), np.uint8))
    writer.release()
    unfinished.rename(path)


def statuses(got) -> list[dict]:
    return [
        {"message": a.status[0].message, **{v.key: v.value for v in a.status[0].values}} for a in got["diagnostics"]
    ]


def test_video_file_is_published_lost_and_found_again(listen, start_node, robot, tmp_path):
    video = tmp_path / "cam.avi"
    write_video(video)
    listener = listen(
        jpeg=(CompressedImage, "/overhead/image_raw/compressed"),
        raw=(Image, "/overhead/image_raw"),
        info=(CameraInfo, "/overhead/camera_info"),
        diagnostics=(DiagnosticArray, "/diagnostics"),
    )
    parameters = {"robot": str(robot), "camera": "overhead", "source": str(video), "transport": "both"}
    node = start_node("aloe_robot", "camera_node", parameters)
    got = listener.wait(lambda g: g if len(g["jpeg"]) > 20 and len(g["raw"]) > 20 and len(g["info"]) > 20 else None)
    stamps = [stamp_to_ns(m.header.stamp) for m in got["jpeg"]]
    assert stamps == sorted(set(stamps))
    image = decode_image(bytes(got["jpeg"][0].data), None)
    assert image.shape == (48, 64, 3)
    assert abs(int(image[10, 10, 0]) - 200) < 8  # red is 200 in every frame: colours are not swapped
    raw = got["raw"][0]
    assert (raw.width, raw.height, raw.step, raw.encoding, raw.header.frame_id) == (64, 48, 192, "bgr8", "optical")
    assert len(raw.data) == 192 * 48
    assert (got["info"][0].width, got["info"][0].k[0]) == (64, 1.0)
    assert node.output.count("has no calibration") == 1
    listener.wait(lambda g: any(int(s["captured"]) > 0 for s in statuses(g)))

    video.unlink()
    node.wait_for(r"camera 'overhead'.*cam\.avi does not exist")
    listener.wait(lambda g: any("does not exist" in s["message"] for s in statuses(g)))
    write_video(video)
    node.wait_for("camera 'overhead' delivers pictures again")
    listener.wait(lambda g: any(int(s["reconnects"]) == 1 for s in statuses(g)))
    assert node.stop() == 0


def test_mock_source_needs_no_hardware(listen, start_node, robot):
    listener = listen(jpeg=(CompressedImage, "/overhead/image_raw/compressed"))
    start_node("aloe_robot", "camera_node", {"robot": str(robot), "camera": "overhead", "source": "mock"})
    frames = listener.wait(lambda g: g["jpeg"] if len(g["jpeg"]) > 5 else None)
    first, last = (decode_image(bytes(m.data), None) for m in (frames[0], frames[-1]))
    assert not np.array_equal(first, last)


def test_the_profile_for_large_images_is_in_effect(start_node, robot):
    """A profile that Fast DDS does not read changes nothing and says nothing: look at the segment it makes."""
    shared, profile = Path("/dev/shm"), PROFILE.read_text()
    assert "<segment_size>33554432</segment_size>" in profile
    before = set(shared.iterdir())
    variables = (
        "FASTRTPS_DEFAULT_PROFILES_FILE",
        "FASTDDS_DEFAULT_PROFILES_FILE",
    )  # Jazzy's, and that of later versions
    parameters = {"robot": str(robot), "camera": "overhead", "source": "mock"}
    node = start_node("aloe_robot", "camera_node", parameters, env=dict.fromkeys(variables, str(PROFILE)))
    node.wait_for("camera 'overhead': mock")
    assert max(p.stat().st_size for p in set(shared.iterdir()) - before if p.exists()) >= 33554432


def test_missing_device_is_named_and_waited_for(listen, start_node, robot):
    listener = listen(diagnostics=(DiagnosticArray, "/diagnostics"))
    node = start_node("aloe_robot", "camera_node", {"robot": str(robot), "camera": "overhead"})
    node.wait_for(r"cannot open camera device '/dev/video97': /dev/video97 does not exist")
    listener.wait(lambda g: any("/dev/video97" in s["message"] for s in statuses(g)))
    assert node.returncode is None
    assert node.stop() == 0


def test_life_cycle_by_service(listen, start_node, robot):
    listener = listen(jpeg=(CompressedImage, "/overhead/image_raw/compressed"))
    start_node(
        "aloe_robot", "camera_node", {"robot": str(robot), "camera": "overhead", "source": "mock", "autostart": False}
    )
    client = listener.node.create_client(ChangeState, "/camera_node/change_state")
    assert client.wait_for_service(60.0)

    def change(transition: int) -> bool:
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        deadline = time.monotonic() + 60.0
        while not future.done():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return future.result().success

    for _ in range(2):
        listener.got["jpeg"].clear()
        assert change(Transition.TRANSITION_CONFIGURE)
        assert not listener.got["jpeg"]
        assert change(Transition.TRANSITION_ACTIVATE)
        listener.wait(lambda g: len(g["jpeg"]) > 3)
        assert change(Transition.TRANSITION_DEACTIVATE)
        assert change(Transition.TRANSITION_CLEANUP)
    assert not change(Transition.TRANSITION_ACTIVATE)  # not from here, and the node survives the question
    assert change(Transition.TRANSITION_CONFIGURE)


def test_the_calibration_is_looked_for_beside_the_description_that_was_found(
    ros_domain, robot, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    """`$ALOE_ROBOTS` is looked into first; the description and its calibration lie in the folder after it."""
    shipped = tmp_path / "share" / "aloe_bringup" / "config" / "robots"
    shipped.mkdir(parents=True)
    own = tmp_path / "own"
    own.mkdir()
    text = robot.read_text().replace("/dev/video97}", "mock, calibration: overhead.yaml}")
    (shipped / "shipped.yaml").write_text(text.replace("width: 64, height: 48", "width: 640, height: 480"))
    (shipped / "overhead.yaml").write_text(CALIBRATION.read_text())
    monkeypatch.setenv("ALOE_ROBOTS", str(own))
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join((str(tmp_path), os.environ.get("AMENT_PREFIX_PATH", ""))))
    rclpy.init(args=ros_arguments(parameters=[{"robot": "shipped", "camera": "overhead", "autostart": False}]))
    node = CameraNode()
    try:
        node.configure()
        assert node.calibration.camera_matrix.data[0] == 610.0
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def test_bad_input_ends_the_node_with_a_sentence(start_node, robot):
    cases = [
        ({"camera": "overhead", "exit_on_missing": True}, "/dev/video97 does not exist"),
        ({"camera": "wrist"}, "robot 'one_camera' has no camera 'wrist'; it has: overhead"),
        ({"camera": ""}, "parameter 'camera' is empty"),
        ({"camera": "overhead", "transport": "png"}, "'transport' is 'png', not one of compressed, raw, both"),
        ({"camera": "overhead", "source": "sim"}, "'sim' is rendered by the simulator"),
        ({"camera": "overhead", "source": 0}, "parameter 'source': 0 is not of type str"),
        ({"camera": "overhead", "loop": 1}, "parameter 'loop': 1 is not of type bool"),
    ]
    started = [(start_node("aloe_robot", "camera_node", {"robot": str(robot), **p}), text) for p, text in cases]
    for node, sentence in started:
        assert node.wait() == 1
        assert sentence in node.output
        assert "Traceback" not in node.output
