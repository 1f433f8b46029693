"""SpaceMouse reports byte by byte, as the devices send them; loss and return of a device; telling two of them apart."""

import os

import numpy as np
import pytest

from aloe_core.errors import AloeError
from aloe_intervention.hidraw import HidInfo, HidrawDevice, find_devices, select_device
from aloe_intervention.spacemouse import AxisConfig, ReportDecoder, SpaceMouse

SECOND = 1_000_000_000


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


class FakeDevice:
    """Hands out reports as a device file would; an exception in the list is raised once."""

    def __init__(self, *reports: bytes | Exception) -> None:
        self.waiting = list(reports)
        self.closed = False

    def read(self) -> bytes | None:
        if not self.waiting:
            return None
        report = self.waiting.pop(0)
        if isinstance(report, Exception):
            raise report
        return report

    def close(self) -> None:
        self.closed = True


# Device axes x right, y towards the user, z down -> forward, left, up, roll, pitch, yaw. 350 = 0x015e, -350 = 0xfea2, 175 = 0x00af.
SPLIT = [
    ("01 5e 01 00 00 00 00", [0, -1, 0, 0, 0, 0]),  # pushed right
    ("01 00 00 a2 fe 00 00", [1, 0, 0, 0, 0, 0]),  # pushed away
    ("01 00 00 00 00 a2 fe", [0, 0, 1, 0, 0, 0]),  # lifted
    ("02 00 00 e2 ff 00 00", [0, 0, 0, 30 / 350, 0, 0]),  # seen on a SpaceNavigator: -30 about its second axis
    ("02 af 00 00 00 00 00", [0, 0, 0, 0, -0.5, 0]),
    ("02 00 00 00 00 51 ff", [0, 0, 0, 0, 0, 0.5]),
]


@pytest.mark.parametrize(("report", "axes"), SPLIT)
def test_split_reports_of_older_models(report, axes):
    decoder = ReportDecoder()
    assert decoder.feed(hexed(report))
    np.testing.assert_allclose(decoder.axes, axes, atol=1e-12)


def test_a_rotation_report_keeps_the_translation_and_the_other_way_round():
    """A SpaceMouse Compact in motion alternates the two."""
    decoder = ReportDecoder()
    for report in ("02 20 00 00 00 17 00", "01 12 00 00 00 f8 00", "02 20 00 00 00 19 00"):
        decoder.feed(hexed(report))
    np.testing.assert_allclose(decoder.axes, np.array([0, -18, -248, 0, -32, -25]) / 350)


def test_combined_report_of_newer_models():
    decoder = ReportDecoder()
    decoder.feed(hexed("01 5e 01 a2 fe af 00 51 ff 00 00 5e 01"))
    np.testing.assert_allclose(decoder.axes, [1, -1, -0.5, 0, 0.5, -1])


def test_a_bare_translation_after_a_combined_report_leaves_the_rotation():
    decoder = ReportDecoder()
    decoder.feed(hexed("01 00 00 00 00 00 00 00 00 00 00 5e 01"))
    decoder.feed(hexed("01 5e 01 00 00 00 00"))
    np.testing.assert_allclose(decoder.axes, [0, -1, 0, 0, 0, -1])


@pytest.mark.parametrize(
    ("report", "down"),
    [
        ("03 01 00", {0}),  # SpaceNavigator, Compact
        ("03 02 00", {1}),
        ("03 03 00", {0, 1}),
        ("03 00 00", set()),
        ("03 00 10 00 00", {12}),  # SpaceMouse Pro: key 1
        ("03 00 00 40 00", {22}),  # Esc
        ("03 00 00 00 01 00 00", {24}),  # Enterprise: Shift
    ],
)
def test_button_reports(report, down):
    decoder = ReportDecoder()
    assert decoder.feed(hexed(report))
    assert {i for i in range(48) if decoder.buttons >> i & 1} == down


@pytest.mark.parametrize("report", ["17 64", "", "01", "01 5e 01", "02 5e", "03", "ff ff ff ff ff ff ff"])
def test_other_and_short_reports_change_nothing(report):
    decoder = ReportDecoder()
    decoder.feed(hexed("01 5e 01 00 00 00 00"))
    assert not decoder.feed(hexed(report))
    np.testing.assert_allclose(decoder.axes, [0, -1, 0, 0, 0, 0])


def test_deflection_stays_within_one():
    decoder = ReportDecoder()
    decoder.feed(hexed("01 ff 7f 00 80 00 00"))
    np.testing.assert_allclose(decoder.axes, [1, -1, 0, 0, 0, 0])


def test_decoding_agrees_with_pyspacemouse_for_every_model_it_knows():
    pyspacemouse = pytest.importorskip("pyspacemouse")
    convention = pytest.importorskip("pyspacemouse.types").AxisConvention.ROS
    generator = np.random.default_rng(0)
    for spec in pyspacemouse.get_device_specs().values():
        theirs = pyspacemouse.config_helpers.apply_axis_convention(spec, convention)
        ours = ReportDecoder()
        for _ in range(20):
            values = generator.integers(-350, 351, 6).astype("<i2").tobytes()
            combined = spec.bytes_to_read == 13
            reports = [b"\1" + values] if combined else [b"\1" + values[:6], b"\2" + values[6:]]
            for report in reports:
                ours.feed(report)
            expected = []
            for axis in ("x", "y", "z", "roll", "pitch", "yaw"):
                where = theirs.mappings[axis]
                (report,) = [r for r in reports if r[0] == where.channel]
                raw = int.from_bytes(report[where.byte1 : where.byte2 + 1], "little", signed=True)
                expected.append(where.scale * raw / theirs.axis_scale)
            np.testing.assert_allclose(ours.axes, expected, err_msg=spec.name)
        for name, button in zip(spec.button_names, spec.button_specs, strict=True):
            report = bytearray(7)
            report[0], report[button.byte] = button.channel, 1 << button.bit
            ours.feed(bytes(report))
            assert ours.buttons == 1 << 8 * (button.byte - 1) + button.bit, f"{spec.name} {name}"


def test_dead_zone_scale_and_axis_map():
    axes = AxisConfig(
        dead_zone=0.2, linear_scale=0.5, angular_scale=2.0, axis_map=("-y", "x", "z", "roll", "pitch", "-yaw")
    )
    np.testing.assert_allclose(axes.apply(np.array([0.2, 1.0, -0.6, 0.1, 0.6, 1.0])), [-0.5, 0, -0.25, 0, 1.0, -2.0])


@pytest.mark.parametrize(
    "bad",
    [
        {"dead_zone": 1.0},
        {"dead_zone": -0.1},
        {"linear_scale": float("nan")},
        {"axis_map": ["x"] * 5},
        {"axis_map": ["w"] * 6},
    ],
)
def test_bad_axes_are_refused(bad):
    with pytest.raises(AloeError):
        AxisConfig(**bad)


def test_a_device_is_lost_and_found_again():
    first = FakeDevice(hexed("01 5e 01 00 00 00 00"), hexed("03 01 00"))
    second = FakeDevice(hexed("02 00 00 00 00 51 ff"))
    plugged = [AloeError("no SpaceMouse is connected"), first, OSError(19, "No such device"), second]

    def open_device():
        device = plugged.pop(0)
        if isinstance(device, Exception):
            raise device
        return device

    mouse = SpaceMouse(open_device, AxisConfig(dead_zone=0.0), retry_s=0.5)
    assert mouse.poll(0) is None
    assert mouse.problem == "no SpaceMouse is connected"
    assert mouse.poll(SECOND // 4) is None
    assert len(plugged) == 3, "it does not hammer the system"

    reading = mouse.poll(SECOND // 2)
    np.testing.assert_allclose(reading.twist, [0, -1, 0, 0, 0, 0])
    assert reading.buttons == (1, 0)
    assert mouse.problem == ""

    first.waiting.append(OSError(19, "No such device"))
    assert mouse.poll(SECOND) is None
    assert first.closed
    assert mouse.problem == "the SpaceMouse was lost: No such device"
    assert mouse.poll(SECOND * 3 // 2) is None  # still away

    reading = mouse.poll(SECOND * 2)
    np.testing.assert_allclose(reading.twist, [0, 0, 0, 0, 0, 0.5])  # nothing is left of what the lost one held
    assert reading.buttons == (0, 0)
    assert (mouse.connections, mouse.reports) == (2, 3)


def test_a_deflected_stick_that_falls_silent_is_lost_until_it_reports_again():
    """The radio of a wireless mouse: the receiver stays, so that its device file does."""
    device = FakeDevice(hexed("01 00 00 a2 fe 00 00"))
    mouse = SpaceMouse(lambda: device)
    for late in (0.0, 0.05, 0.09):
        assert mouse.poll(round(late * SECOND)).twist[0] == 1.0
        assert mouse.problem == ""
    for late in (0.1, 60.0):
        assert mouse.poll(round(late * SECOND)) is None
        assert mouse.problem == "no reports while deflected"
    device.waiting = [hexed("17 64")]
    assert mouse.poll(61 * SECOND) is None, "the level of the battery is no report of the stick"
    device.waiting = [hexed("01 00 00 51 ff 00 00")]
    assert mouse.poll(62 * SECOND).twist[0] > 0.4
    assert (mouse.problem, mouse.connections) == ("", 1)


def test_a_cap_held_still_that_reports_steadily_is_not_lost():
    device = FakeDevice()
    mouse = SpaceMouse(lambda: device)
    for k in range(100):  # polled at 100 Hz; reports come every 10 to 20 ms
        if k % 8 not in (3, 5):
            device.waiting = [hexed("01 00 00 a2 fe 00 00")]
        assert mouse.poll(k * SECOND // 100).twist[0] == 1.0


@pytest.mark.parametrize("at_rest", ["01 00 00 00 00 00 00", "01 05 00 00 00 00 00"])
def test_a_stick_at_rest_may_be_silent(at_rest):
    mouse = SpaceMouse(lambda: FakeDevice(hexed(at_rest), hexed("03 01 00")))
    assert mouse.poll(0).buttons == (1, 0)
    assert mouse.poll(600 * SECOND).buttons == (1, 0)


def test_reports_that_pile_up_are_all_read():
    reports = [hexed("01 5e 01 00 00 00 00")] * 50 + [hexed("01 00 00 00 00 00 00")]
    reading = SpaceMouse(lambda: FakeDevice(*reports)).poll(0)
    assert not reading.twist.any(), "the newest report counts"


def test_a_device_file_gives_one_report_per_read(tmp_path):
    """A named pipe stands for the device file; reading past its writer's end is what unplugging looks like."""
    path = tmp_path / "hidraw0"
    os.mkfifo(path)
    device = HidrawDevice(str(path))
    with path.open("wb", buffering=0) as writer:
        assert device.read() is None
        writer.write(hexed("03 01 00"))
        assert device.read() == hexed("03 01 00")
    with pytest.raises(OSError, match="ended"):
        device.read()
    device.close()


NAVIGATOR = "05 01 09 08 a1 01 a1 00 85 01"
KEYBOARD = "05 01 09 06 a1 01"


def fake_sysfs(folder, **devices):
    for name, (hid_id, label, phys, serial, descriptor) in devices.items():
        entry = folder / name / "device"
        entry.mkdir(parents=True)
        uevent = f"DRIVER=hid-generic\nHID_ID={hid_id}\nHID_NAME={label}\nHID_PHYS={phys}\nHID_UNIQ={serial}\n"
        (entry / "uevent").write_text(uevent)
        (entry / "report_descriptor").write_bytes(hexed(descriptor))
    return folder


def test_two_mice_never_swap(tmp_path):
    sysfs = fake_sysfs(
        tmp_path,
        hidraw0=("0003:0000046D:0000C31C", "Logitech Keyboard", "usb-1/input0", "", KEYBOARD),
        hidraw2=("0003:0000256F:0000C652", "Receiver, keyboard", "usb-4/input1", "R1", KEYBOARD),
        hidraw3=("0003:0000256F:0000C635", "SpaceMouse Compact", "usb-0000:00:14.0-2/input0", "", NAVIGATOR),
        hidraw10=("0003:0000046D:0000C626", "SpaceNavigator", "usb-0000:00:14.0-3/input0", "", NAVIGATOR),
        hidraw11=("0003:0000256F:0000C652", "Universal Receiver", "usb-4/input0", "R1", NAVIGATOR),
    )
    devices = find_devices(sysfs)
    assert [d.path for d in devices] == ["/dev/hidraw3", "/dev/hidraw10", "/dev/hidraw11"]
    assert select_device("port:usb-0000:00:14.0-3", devices) == "/dev/hidraw10"
    assert select_device("serial:R1", devices) == "/dev/hidraw11"
    assert select_device("/dev/spacemouse_left", devices) == "/dev/spacemouse_left"
    with pytest.raises(AloeError, match="several SpaceMice"):
        select_device("", devices)
    with pytest.raises(
        AloeError, match=r"no SpaceMouse 'serial:R2' is connected; connected: /dev/hidraw3 \(SpaceMouse Compact"
    ):
        select_device("serial:R2", devices)
    with pytest.raises(AloeError, match="give a path"):
        select_device("left", devices)


def test_the_only_mouse_needs_no_name():
    only = HidInfo("/dev/hidraw3", "SpaceMouse Compact", 0x256F, 0xC635, "", "usb-2")
    assert select_device("", [only]) == "/dev/hidraw3"
    with pytest.raises(AloeError, match="no SpaceMouse is connected; connected: none"):
        select_device("", [])
