"""Linux hidraw devices: finding the right SpaceMouse and reading its reports, one `read` per report.

hidraw needs no library on the system and hands over reports with their true length, which tells the layout. Where a device has no serial number
(SpaceNavigator and Compact have none) its USB port tells two of them apart.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aloe_core.errors import AloeError

SYSFS = Path("/sys/class/hidraw")
_VENDOR, _LOGITECH = 0x256F, 0x046D  # older 3Dconnexion devices carry Logitech's number
_LOGITECH_PRODUCTS = (0xC603, 0xC605, 0xC606, 0xC621, 0xC623, 0xC625, 0xC626, 0xC627, 0xC628, 0xC629, 0xC62B)
_MULTI_AXIS = bytes([0x05, 0x01, 0x09, 0x08])  # report descriptor: generic desktop, multi-axis controller
_MAX_REPORT = 64


@dataclass(frozen=True, slots=True)
class HidInfo:
    """A connected device."""

    path: str  # device file
    name: str
    vendor: int
    product: int
    serial: str  # empty: it has none
    port: str  # where it is plugged in, stable as long as it stays there: usb-0000:00:14.0-3

    def __str__(self) -> str:
        serial = f"serial:{self.serial}" if self.serial else "no serial number"
        return f"{self.path} ({self.name}, {serial}, port:{self.port})"


def find_devices(sysfs: Path = SYSFS) -> list[HidInfo]:
    """The SpaceMice connected now. A receiver shows several devices; those that are not motion controllers are left out."""
    found = []
    for entry in sorted(sysfs.glob("hidraw*"), key=lambda p: int(p.name.removeprefix("hidraw"))):
        try:
            lines = (entry / "device" / "uevent").read_text().splitlines()
            descriptor = (entry / "device" / "report_descriptor").read_bytes()
        except OSError:  # unplugged while we were looking
            continue
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        _, vendor, product = (int(part, 16) for part in fields.get("HID_ID", "0:0:0").split(":"))
        ours = vendor == _VENDOR or (vendor == _LOGITECH and product in _LOGITECH_PRODUCTS)
        if ours and descriptor.startswith(_MULTI_AXIS):
            port = fields.get("HID_PHYS", "").split("/")[0]
            name, serial = fields.get("HID_NAME", "unknown"), fields.get("HID_UNIQ", "")
            found.append(HidInfo(f"/dev/{entry.name}", name, vendor, product, serial, port))
    return found


def select_device(wanted: str, devices: list[HidInfo]) -> str:
    """The device file to open.

    Args:
        wanted: a path (`/dev/spacemouse_left`), `serial:<number>`, `port:<usb port>`, or empty for the only one there is.
        devices: result of `find_devices`.

    Raises:
        AloeError: there is no such device, or more than one could be meant; the message lists what is connected.
    """
    if wanted.startswith("/"):
        return wanted
    kind, _, value = wanted.partition(":")
    if wanted and (kind not in ("serial", "port") or not value):
        raise AloeError(f"SpaceMouse '{wanted}': give a path, serial:<number>, port:<usb port>, or nothing")
    matches = [d for d in devices if not wanted or getattr(d, kind) == value]
    if len(matches) == 1:
        return matches[0].path
    connected = "; ".join(str(d) for d in devices) or "none"
    if not matches:
        raise AloeError(f"no SpaceMouse{f' {wanted!r}' if wanted else ''} is connected; connected: {connected}")
    raise AloeError(f"several SpaceMice could be meant, name one by path, serial or port; connected: {connected}")


class HidrawDevice:
    """An open hidraw device file.

    Raises:
        OSError: it cannot be opened; for missing permission the message says what to do.
    """

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                f"no permission to read {path}; install config/udev/60-aloe-spacemouse.rules and plug it in again",
            ) from None

    def read(self) -> bytes | None:
        """The next report, or None if none is waiting; `OSError` when the device is gone."""
        try:
            report = os.read(self._fd, _MAX_REPORT)
        except BlockingIOError:
            return None
        if not report:
            raise OSError("the device file has ended")
        return report

    def close(self) -> None:
        """Closes the device file."""
        os.close(self._fd)


def open_spacemouse(wanted: str = "") -> HidrawDevice:
    """Finds and opens a device; see `select_device`."""
    return HidrawDevice(select_device(wanted, find_devices()))
