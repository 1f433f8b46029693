"""Capture, sources and calibration without ROS, on real video files."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from aloe_core.errors import AloeError
from aloe_core.robot import Camera
from aloe_robot.calibration import identity_calibration, load_calibration
from aloe_robot.camera import Capture, Ended, FileSource, MockSource, Pace, fit, open_source

CAMERA = Camera(name="overhead", topic="/overhead", width=640, height=480)
EXAMPLE = Path(__file__).parents[3] / "config" / "cameras" / "example_640x480.yaml"


def write_video(path: Path, frames: int = 8, size: tuple[int, int] = (64, 48)) -> Path:
    """Frame k is uniformly of grey value 20 k."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, size)
    for k in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * k, np.uint8))
    writer.release()
    return path


class ScriptedDevice:
    """Delivers `frames` pictures whose value is their number, then is lost."""

    def __init__(self, frames: int, gate: threading.Semaphore | None = None) -> None:
        self.left = frames
        self.gate = gate

    def grab(self) -> bool:
        if self.gate is not None:
            self.gate.acquire()
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> np.ndarray:
        return np.full((4, 4, 3), self.left, np.uint8)

    def release(self) -> None:
        pass


def test_video_file_is_played_in_order_and_loops(tmp_path):
    source = FileSource(str(write_video(tmp_path / "a.avi", frames=3)), rate_hz=1000.0, loop=True)
    greys = []
    for _ in range(7):
        assert source.grab()
        greys.append(round(float(source.retrieve().mean()) / 20))
    assert greys == [0, 1, 2, 0, 1, 2, 0]


def test_video_file_without_loop_ends(tmp_path):
    source = FileSource(str(write_video(tmp_path / "a.avi", frames=2)), rate_hz=1000.0, loop=False)
    assert source.grab()
    assert source.grab()
    with pytest.raises(Ended, match=r"a\.avi"):
        source.grab()


def test_mock_frames_are_reproducible_and_move():
    one, two = MockSource(64, 48, 1000.0), MockSource(64, 48, 1000.0)
    frames = []
    for _ in range(200):
        one.grab(), two.grab()
        frames.append(one.retrieve())
        assert np.array_equal(frames[-1], two.retrieve())
    assert frames[0].shape == (48, 64, 3)
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize("source", ["/dev/video97", "97"])
def test_missing_device_is_named(source):
    with pytest.raises(AloeError, match=r"/dev/video97 does not exist"):
        open_source(source, 640, 480, 30.0)


def test_unreadable_video_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(AloeError, match=r"broken\.mp4"):
        open_source(str(tmp_path / "broken.mp4"), 640, 480, 30.0)
    with pytest.raises(AloeError, match=r"none\.mp4 does not exist"):
        open_source(str(tmp_path / "none.mp4"), 640, 480, 30.0)


def test_simulated_camera_is_not_opened_here():
    with pytest.raises(AloeError, match="mock"):
        open_source("sim", 640, 480, 30.0)


def test_the_newest_frame_wins_and_the_others_are_counted():
    gate, done = threading.Semaphore(0), threading.Semaphore(0)
    stamps = itertools.count(100)
    capture = Capture(lambda: ScriptedDevice(200, gate), lambda: next(stamps), on_frame=done.release)
    capture.start()
    for _ in range(5):  # nobody takes them
        gate.release()
        assert done.acquire(timeout=60)
    frame = capture.take()
    assert frame.stamp_ns == 104
    assert int(frame.image[0, 0, 0]) == 200 - 5
    assert capture.take() is None
    status = capture.status()
    assert (status.captured, status.dropped, status.reconnects) == (5, 4, 0)
    for _ in range(2):
        gate.release()
    capture.close()


def test_a_lost_device_is_opened_again_and_its_reasons_told_once():
    told, frames = [], threading.Semaphore(0)
    attempts = iter([ScriptedDevice(2), None, None, ScriptedDevice(3), None])
    exhausted = threading.Event()

    def open_():
        device = next(attempts, None)
        if device is None:
            if attempts.__length_hint__() == 0:
                exhausted.set()
            raise AloeError("no such device: cam")
        return device

    capture = Capture(open_, lambda: 0, frames.release, told.append, backoff_s=0.001, max_backoff_s=0.002)
    capture.start()
    assert exhausted.wait(60)
    capture.close()
    lost, missing = "the camera stopped delivering pictures", "no such device: cam"
    assert told[:5] == [lost, missing, "", lost, missing]
    status = capture.status()
    assert (status.captured, status.reconnects, status.connected, status.error) == (5, 1, False, missing)


def test_whatever_a_driver_raises_it_is_opened_again():
    class Raising(ScriptedDevice):
        def retrieve(self) -> np.ndarray:
            raise cv2.error("OpenCV(4.11.0) (-215:Assertion failed)\n !buf.empty() in function 'imdecode_'")

    told, frames = [], threading.Semaphore(0)
    devices = iter([Raising(5), ScriptedDevice(5), ScriptedDevice(200, threading.Semaphore(1))])
    capture = Capture(lambda: next(devices), lambda: 0, frames.release, told.append, backoff_s=0.001)
    capture.start()
    for _ in range(6):
        assert frames.acquire(timeout=60)
    assert told[0] == "the camera failed: OpenCV(4.11.0) (-215:Assertion failed) !buf.empty() in function 'imdecode_'"
    status = capture.status()
    assert (status.captured, status.reconnects, status.connected) == (6, 1, True)


def test_a_camera_that_was_gone_for_hours_comes_back():
    attempts, back = itertools.count(1), threading.Event()

    def open_():
        if next(attempts) <= 1100:
            raise AloeError("no such device: cam")
        return ScriptedDevice(5)

    capture = Capture(open_, lambda: 0, back.set, backoff_s=1e-6, max_backoff_s=1e-5)
    capture.start()
    assert back.wait(60)
    capture.close()


def test_a_video_file_that_vanishes_is_found_again(tmp_path):
    path = write_video(tmp_path / "cam.avi", frames=3)
    told: list[str] = []
    seen, lost, found = threading.Event(), threading.Event(), threading.Event()

    def on_error(reason: str) -> None:
        told.append(reason)
        (lost if reason else found).set()

    capture = Capture(lambda: open_source(str(path), 64, 48, 500.0), lambda: 0, seen.set, on_error, backoff_s=0.01)
    capture.start()
    assert seen.wait(60)
    path.unlink()
    assert lost.wait(60)
    assert "cam.avi does not exist" in told[0]
    write_video(path, frames=3)
    assert found.wait(60)
    capture.close()
    assert capture.status().reconnects == 1


def test_pace_does_not_catch_up(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    pace = Pace(10.0)
    pace.wait()
    pace.wait()
    now[0] += 5.0  # a stall
    pace.wait()
    pace.wait()
    assert slept == pytest.approx([0.1, 0.1])


def test_fit_resizes_only_when_needed():
    image = np.zeros((48, 64, 3), np.uint8)
    assert fit(image, 64, 48) is image
    assert fit(image, 32, 24).shape == (24, 32, 3)


def test_example_calibration_is_valid():
    calibration = load_calibration(EXAMPLE, CAMERA)
    assert calibration.camera_matrix.data[0] == 610.0


def test_calibration_errors_name_file_and_key(tmp_path):
    text = EXAMPLE.read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("distortion_model: plumb_bob", ""))
    with pytest.raises(AloeError, match=r"wrong\.yaml: distortion_model"):
        load_calibration(wrong, CAMERA)
    wrong.write_text(text.replace("240.0, 0.0, 0.0, 1.0]", "240.0, 1.0]"))
    with pytest.raises(AloeError, match="numbers, not 3 x"):
        load_calibration(wrong, CAMERA)
    with pytest.raises(AloeError, match=r"640x480.*described as 320x240"):
        load_calibration(EXAMPLE, CAMERA.model_copy(update={"width": 320, "height": 240}))
    with pytest.raises(AloeError, match=r"none\.yaml: No such file"):
        load_calibration(tmp_path / "none.yaml", CAMERA)


def test_identity_calibration_has_the_described_size():
    calibration = identity_calibration(CAMERA)
    assert (calibration.image_width, calibration.image_height) == (640, 480)
