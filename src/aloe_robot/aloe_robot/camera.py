"""Cameras: what OpenCV opens, captured by a thread of its own so that the newest frame wins and a lost device comes back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from aloe_core.errors import AloeError

OPEN_TIMEOUT_MS = 3000  # a network stream that does not answer
READ_TIMEOUT_MS = 2000  # a network stream that went silent
RATE_WINDOW = 64  # frames over which the rate is measured
MAX_DOUBLINGS = 64  # of the wait before a lost camera is opened again; without a bound it outgrows a float


class Source(Protocol):
    """An open camera. `grab` blocks until the next frame exists (false: the device is lost), `retrieve` hands it over, BGR uint8 `[h, w, 3]`."""

    def grab(self) -> bool: ...

    def retrieve(self) -> np.ndarray | None: ...

    def release(self) -> None: ...


class Ended(Exception):
    """A video file has been played to its end; nothing is broken."""


class DeviceSource:
    """A V4L2 device (index or path) or a network stream."""

    def __init__(self, source: str, width: int, height: int, rate_hz: float) -> None:
        network = "://" in source
        device: int | str = int(source) if source.isdigit() else source
        if network:
            timeouts = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                OPEN_TIMEOUT_MS,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                READ_TIMEOUT_MS,
            ]
            self._capture = cv2.VideoCapture(device, cv2.CAP_FFMPEG, timeouts)
        else:
            self._capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            self._capture.release()
            raise AloeError(f"cannot open camera device '{source}': {_why_not(source)}")
        if not network:
            # MJPG first: most USB cameras reach full size at full rate only compressed.
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
            self._capture.set(cv2.CAP_PROP_FPS, rate_hz)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def grab(self) -> bool:
        return self._capture.grab()

    def retrieve(self) -> np.ndarray | None:
        ok, frame = self._capture.retrieve()
        return frame if ok else None

    def release(self) -> None:
        self._capture.release()


class FileSource:
    """A video file, played at `rate_hz`; raises `Ended` at its end unless `loop`."""

    def __init__(self, path: str, rate_hz: float, loop: bool) -> None:
        self.path = path
        self.loop = loop
        self._pace = Pace(rate_hz)
        self._capture = self._open()

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self.path, cv2.CAP_FFMPEG) if Path(self.path).is_file() else None
        if capture is None or not capture.isOpened():
            raise AloeError(f"cannot open video file '{self.path}': {_why_not(self.path)}")
        return capture

    def grab(self) -> bool:
        self._pace.wait()
        if self._capture.grab():
            return True
        if not self.loop:
            raise Ended(f"video file '{self.path}' has been played to its end (parameter loop is false)")
        self._capture.release()
        self._capture = self._open()
        return self._capture.grab()

    def retrieve(self) -> np.ndarray | None:
        ok, frame = self._capture.retrieve()
        return frame if ok else None

    def release(self) -> None:
        self._capture.release()


class MockSource:
    """A moving test pattern: colour ramps with a square that crosses the picture in 2 s. Frame k is the same on every run."""

    def __init__(self, width: int, height: int, rate_hz: float) -> None:
        self._pace = Pace(rate_hz)
        self._rate_hz = rate_hz
        self._index = -1
        rows, columns = np.mgrid[0:height, 0:width]
        self._background = np.stack(
            [columns * 255 // width, rows * 255 // height, np.full_like(rows, 64)], axis=-1
        ).astype(np.uint8)

    def grab(self) -> bool:
        self._pace.wait()
        self._index += 1
        return True

    def retrieve(self) -> np.ndarray:
        frame = self._background.copy()
        height, width = frame.shape[:2]
        side = max(4, height // 6)
        left = int(self._index / (2.0 * self._rate_hz) % 1.0 * (width - side))
        top = (height - side) // 2
        frame[top : top + side, left : left + side] = (255, 255, 255)
        return frame

    def release(self) -> None:
        pass


class Pace:
    """Wall-clock pace for sources that are not live. After a pause it goes on from now: no burst to catch up."""

    def __init__(self, rate_hz: float) -> None:
        self._period = 1.0 / rate_hz
        self._due = time.monotonic()

    def wait(self) -> None:
        now = time.monotonic()
        if self._due > now:
            time.sleep(self._due - now)
        self._due = max(self._due, now) + self._period


def open_source(source: str, width: int, height: int, rate_hz: float, loop: bool = True) -> Source:
    """Opens `mock`, a V4L2 index or device path, an URL, or a video file.

    Raises:
        AloeError: it is not there or cannot be read; the message names it.
    """
    if source == "mock":
        return MockSource(width, height, rate_hz)
    if source == "sim":
        raise AloeError(
            "camera source 'sim' is rendered by the simulator; give a device, an URL, a video file, or 'mock'"
        )
    if not source:
        raise AloeError("camera source is empty; give a device, an URL, a video file, or 'mock'")
    if source.isdigit() or source.startswith("/dev/") or "://" in source:
        return DeviceSource(source, width, height, rate_hz)
    return FileSource(source, rate_hz, loop)


def _why_not(source: str) -> str:
    if "://" in source:
        return f"the stream did not answer within {OPEN_TIMEOUT_MS / 1000:g} s"
    path = Path(f"/dev/video{source}" if source.isdigit() else source)
    if not path.exists():
        return f"{path} does not exist"
    try:
        path.open("rb").close()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"{path} is not a camera or video that OpenCV can read, or it is in use"


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured picture.

    Attributes:
        stamp_ns: time at which it was captured [ns].
        image: uint8 `[h, w, 3]`, BGR.
    """

    stamp_ns: int
    image: np.ndarray


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """What a capture has done so far; `rate_hz` over the last frames, `age_s` since the last one (inf before the first)."""

    connected: bool
    captured: int
    dropped: int  # captured, but replaced by a newer frame before it was taken
    reconnects: int
    rate_hz: float
    age_s: float
    error: str  # why there is no picture; empty: there is one


class Capture:
    """Reads a source in a thread. One slot: a frame that was not taken in time is replaced by the next and counted as dropped.

    A source that cannot be opened, stops delivering or raises whatever it may is opened again after `backoff_s`, doubling up to `max_backoff_s`.

    Args:
        open_: opens the source; raises `AloeError` with the reason when it cannot.
        now_ns: clock of the stamps [ns].
        on_frame: called in the capture thread when a frame lies ready.
        on_error: called in the capture thread with each *new* reason for having no picture, and with "" when it is back.
    """

    def __init__(
        self,
        open_: Callable[[], Source],
        now_ns: Callable[[], int],
        on_frame: Callable[[], None] = lambda: None,
        on_error: Callable[[str], None] = lambda reason: None,
        backoff_s: float = 0.5,
        max_backoff_s: float = 8.0,
    ) -> None:
        self._open = open_
        self._now_ns = now_ns
        self._on_frame = on_frame
        self._on_error = on_error
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._slot: Frame | None = None
        self._times: deque[float] = deque(maxlen=RATE_WINDOW)  # monotonic [s]
        self._captured = self._dropped = self._connections = 0
        self._connected = False
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Ends the thread; a device that blocks longer than `timeout_s` is left to the end of the process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def take(self) -> Frame | None:
        """The newest frame, once."""
        with self._lock:
            frame, self._slot = self._slot, None
            return frame

    def status(self) -> CaptureStatus:
        with self._lock:
            times = list(self._times)
            age = time.monotonic() - times[-1] if times else float("inf")
            span = times[-1] - times[0] if times else 0.0
            return CaptureStatus(
                connected=self._connected,
                captured=self._captured,
                dropped=self._dropped,
                reconnects=max(0, self._connections - 1),
                rate_hz=(len(times) - 1) / span if span > 0 and self._connected else 0.0,
                age_s=age,
                error=self._error,
            )

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            before = self._captured
            try:
                source = self._open()
                try:
                    self._read(source)
                finally:
                    source.release()
            except AloeError as error:
                self._fail(str(error))
            except Ended as end:
                self._fail(str(end))
                return
            except Exception as error:  # cv2.error and whatever else a driver throws: without its thread the camera would never come back
                self._fail(f"the camera failed: {' '.join(str(error).split()) or type(error).__name__}")
            failures = 1 if self._captured > before else failures + 1
            self._stop.wait(min(self._backoff_s * 2 ** min(failures - 1, MAX_DOUBLINGS), self._max_backoff_s))

    def _read(self, source: Source) -> None:
        first = True
        while not self._stop.is_set():
            if not source.grab():
                raise AloeError("the camera stopped delivering pictures")
            stamp = self._now_ns()
            image = source.retrieve()
            if image is None:
                raise AloeError("the camera delivered a picture that cannot be decoded")
            with self._lock:
                if first:
                    self._connections += 1
                    self._times.clear()
                self._captured += 1
                self._dropped += self._slot is not None
                self._slot = Frame(stamp, image)
                self._times.append(time.monotonic())
                self._connected = True
                recovered, self._error = self._error != "", ""
            first = False
            if recovered:
                self._on_error("")
            self._on_frame()

    def _fail(self, reason: str) -> None:
        with self._lock:
            new = reason != self._error
            self._connected, self._error = False, reason
        if new:
            self._on_error(reason)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """BGR uint8 `[h, w, 3]` -> `[height, width, 3]`, area-resized when the camera delivers another size than the robot description asks for."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """BGR uint8 `[h, w, 3]` -> JPEG."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def stale_after_s(rate_hz: float) -> float:
    """Age [s] at which a picture counts as stale: three periods, at least 0.2 s (our choice: above the jitter of USB cameras)."""
    return max(3.0 / rate_hz, 0.2)
