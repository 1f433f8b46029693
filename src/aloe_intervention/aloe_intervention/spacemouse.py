"""3Dconnexion devices at the level of their HID reports: decoding, dead zone and axes, loss and return of the device.

Reports (byte 0 is the report's number, axes are little-endian int16, about -350 .. 350):

    1: x y z                  older models: SpaceNavigator, SpaceMouse Compact, SpaceMouse Pro
    2: rx ry rz               (the same)
    1: x y z rx ry rz         newer ones: SpaceMouse Wireless, Pro Wireless, Enterprise, Universal Receiver
    3: buttons                one bit per button, 1 to 6 bytes

Products of one name exist with either layout, so the layout is told by the report's length and never by the product. Device axes are x right, y
towards the user, z down; ours are those of REP-103: x forward, y left, z up, rotations right-handed about them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aloe_core.errors import AloeError

SILENCE = 0.1  # [s] our choice: a deflected stick reports every 8 to 16 ms, one that has lost its radio never again, while its receiver stays there
FULL_SCALE = 350.0  # largest value of an axis on every model
AXES = ("x", "y", "z", "roll", "pitch", "yaw")
_TRANSLATION, _ROTATION, _BUTTONS = 1, 2, 3
# REP-103 axis = sign * device axis
_SOURCE = np.array([1, 0, 2, 4, 3, 5])
_SIGN = np.array([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])


class HidDevice(Protocol):
    """An open device: what lies just above its device file."""

    def read(self) -> bytes | None:
        """The next report, or None if none is waiting. Raises `OSError` when the device is gone."""
        ...

    def close(self) -> None:
        """Closes the device file."""
        ...


class ReportDecoder:
    """State of one device, updated report by report."""

    def __init__(self) -> None:
        self._raw = np.zeros(6, np.int16)
        self.buttons = 0  # bit i: button i is down

    def feed(self, report: bytes) -> bool:
        """Takes one report as read from the device file; whether it told anything about axes or buttons."""
        kind, payload = (report[0], report[1:]) if report else (0, b"")
        if kind == _TRANSLATION and len(payload) >= 12:
            self._raw[:] = struct.unpack_from("<6h", payload)
        elif kind == _TRANSLATION and len(payload) >= 6:
            self._raw[:3] = struct.unpack_from("<3h", payload)
        elif kind == _ROTATION and len(payload) >= 6:
            self._raw[3:] = struct.unpack_from("<3h", payload)
        elif kind == _BUTTONS and payload:
            self.buttons = int.from_bytes(payload, "little")
        else:
            return False  # battery and device information
        return True

    @property
    def axes(self) -> np.ndarray:
        """Deflection float64 `[6]` in -1 .. 1: forward, left, up, roll, pitch, yaw."""
        return np.clip(_SIGN * self._raw[_SOURCE] / FULL_SCALE, -1.0, 1.0)


@dataclass(frozen=True, slots=True)
class AxisConfig:
    """From the stick's deflection to what is published.

    Attributes:
        dead_zone: deflection that counts as rest; what is beyond is stretched, so that nothing jumps at its border.
        linear_scale: value at full translation.
        angular_scale: value at full rotation.
        axis_map: for each published axis the stick's axis it comes from, `-` reverses: how the device stands in front of the operator.
    """

    dead_zone: float = 0.05
    linear_scale: float = 1.0
    angular_scale: float = 1.0
    axis_map: Sequence[str] = AXES

    def __post_init__(self) -> None:
        if not 0 <= self.dead_zone < 1:
            raise AloeError(f"dead_zone is a share of the deflection in [0, 1), not {self.dead_zone}")
        if not (np.isfinite(self.linear_scale) and np.isfinite(self.angular_scale)):
            raise AloeError("linear_scale and angular_scale are finite numbers")
        sources = [name.removeprefix("-") for name in self.axis_map]
        if len(sources) != 6 or not set(sources) <= set(AXES):
            raise AloeError(f"axis_map names six of {', '.join(AXES)}, with - to reverse; not {list(self.axis_map)}")

    def apply(self, axes: np.ndarray) -> np.ndarray:
        """Deflection `[6]` -> published twist float64 `[6]`: linear xyz, angular xyz."""
        source = [AXES.index(name.removeprefix("-")) for name in self.axis_map]
        sign = np.array([-1.0 if name.startswith("-") else 1.0 for name in self.axis_map])
        value = sign * axes[source]
        beyond = np.maximum(np.abs(value) - self.dead_zone, 0.0) / (1.0 - self.dead_zone)
        return np.copysign(beyond, value) * np.repeat([self.linear_scale, self.angular_scale], 3)


@dataclass(frozen=True, slots=True)
class Reading:
    """The stick at one instant."""

    twist: np.ndarray  # float64 [6]: linear xyz, angular xyz, scaled
    buttons: tuple[int, ...]  # 1: down


class SpaceMouse:
    """One device that may come and go.

    Args:
        open_device: opens it; raises `AloeError` or `OSError` while it is not there.
        axes: dead zone, scale and axis map.
        retry_s: time between attempts to find it again [s].
        max_reports: reports read per poll at most, so that a mad device cannot hold the caller.
    """

    def __init__(
        self,
        open_device: Callable[[], HidDevice],
        axes: AxisConfig | None = None,
        retry_s: float = 0.5,
        max_reports: int = 256,
    ) -> None:
        self._open, self._axes = open_device, axes or AxisConfig()
        self._retry_ns, self._max_reports = round(retry_s * 1e9), max_reports
        self._device: HidDevice | None = None
        self._decoder = ReportDecoder()
        self._next_try_ns: int | None = None
        self._button_count = 2
        self._reported_ns = 0  # when the last report was decoded
        self.connections = 0  # how often it was found
        self.reports = 0  # reports decoded
        self.problem = "not opened yet"  # why there is no reading; empty while there is one

    @property
    def connected(self) -> bool:
        """Whether the device is there."""
        return self._device is not None

    def poll(self, now_ns: int) -> Reading | None:
        """Reads everything that waits. The stick's state, or None while the device is away or deflected without a report; `problem` says why.

        A device found again starts from rest: what it held when it was lost is forgotten. `now_ns` is monotonic time.
        """
        if self._device is None and (self._next_try_ns is None or now_ns >= self._next_try_ns):
            self._connect(now_ns)
        if self._device is None:
            return None
        try:
            for _ in range(self._max_reports):
                report = self._device.read()
                if report is None:
                    break
                if self._decoder.feed(report):
                    self.reports += 1
                    self._reported_ns = now_ns
        except OSError as error:
            self.close()
            self.problem = f"the SpaceMouse was lost: {error.strerror or error}"
            self._next_try_ns = now_ns + self._retry_ns
            return None
        twist = self._axes.apply(self._decoder.axes)
        silent = twist.any() and now_ns - self._reported_ns >= SILENCE * 1e9
        self.problem = "no reports while deflected" if silent else ""
        if silent:
            return None
        self._button_count = max(self._button_count, self._decoder.buttons.bit_length())
        buttons = tuple(self._decoder.buttons >> i & 1 for i in range(self._button_count))
        return Reading(twist, buttons)

    def close(self) -> None:
        """Closes the device, if it is open."""
        if self._device is not None:
            self._device.close()
            self._device = None

    def _connect(self, now_ns: int) -> None:
        try:
            self._device = self._open()
        except (AloeError, OSError) as error:
            self.problem = str(error)
            self._next_try_ns = now_ns + self._retry_ns
            return
        self._decoder = ReportDecoder()
        self.connections += 1
