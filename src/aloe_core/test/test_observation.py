"""One observation builder: the newest of everything not newer than t, whatever the order of arrival."""

import random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe_core.errors import AloeError
from aloe_core.observation import ObservationBuilder, decode_image
from aloe_core.robot import load_robot

ROBOT = load_robot("aloha_sim")
NAMES = ROBOT.action_names
MS = 1_000_000
PERIOD = 40 * MS  # of the cameras: 25 Hz


def grey(level: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def full_builder(**options: object) -> ObservationBuilder:
    builder = ObservationBuilder(ROBOT, ("overhead",), **options)  # type: ignore[arg-type]
    for k in range(10):
        builder.add_joint_state(k * 20 * MS, NAMES, np.full(14, float(k)))
        if k % 2 == 0:
            builder.add_image("overhead", k * 20 * MS, grey(k))
    return builder


def test_newest_not_newer_than_the_instant() -> None:
    builder = full_builder()
    for t_ms, joint, image in ((0, 0, 0), (19, 0, 0), (20, 1, 0), (45, 2, 2), (100, 5, 4)):
        seen = builder.build(t_ms * MS, "do it")
        assert seen.stamp_ns == t_ms * MS
        assert seen.state.dtype == np.float32
        assert (seen.state == joint).all()
        assert (seen.images["overhead"] == image).all()
        assert seen.camera_stamps_ns == {"overhead": image * 20 * MS}
        assert seen.instruction == "do it"
        assert seen.object_state is None


@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_matter(seed: int) -> None:
    joints = [(k * 20 * MS, k) for k in range(12)]
    images = [(k * PERIOD, k) for k in range(6)]
    rng = random.Random(seed)
    arrivals = [("joint", *j) for j in joints] + [("image", *i) for i in images]
    arrivals += rng.sample(arrivals, 4)  # duplicates
    rng.shuffle(arrivals)
    builder = ObservationBuilder(ROBOT, ("overhead",))
    for kind, stamp, value in arrivals:
        if kind == "joint":
            builder.add_joint_state(stamp, NAMES, np.full(14, float(value)))
        else:
            builder.add_image("overhead", stamp, grey(value))
    for t in range(0, 220 * MS, 10 * MS):
        if builder.ready(t):
            seen = builder.build(t)
            assert (seen.state == min(11, t // (20 * MS))).all()
            assert (seen.images["overhead"] == min(5, t // PERIOD)).all()


@given(seed=st.integers(0, 10_000))
def test_once_ready_nothing_that_may_still_arrive_changes_the_observation(seed: int) -> None:
    """Messages of a source arrive in order; `ready` at t then means that no message to come has a stamp <= t, except older cameras' ones."""
    rng = random.Random(seed)
    sources = [[("joint", k * 20 * MS, k) for k in range(12)], [("image", k * PERIOD, k) for k in range(6)]]
    builder = ObservationBuilder(ROBOT, ("overhead",))
    promised: dict[int, tuple[float, int]] = {}
    while any(sources):
        kind, stamp, value = rng.choice([s for s in sources if s]).pop(0)
        if kind == "joint":
            builder.add_joint_state(stamp, NAMES, np.full(14, float(value)))
        else:
            builder.add_image("overhead", stamp, grey(value))
        for t in range(0, 220 * MS, 20 * MS):
            if builder.ready(t):
                seen = builder.build(t)
                found = (float(seen.state[0]), int(seen.images["overhead"][0, 0, 0]))
                assert promised.setdefault(t, found) == found
    assert len(promised) == 11


def test_a_late_frame_is_waited_for_until_a_newer_one_comes() -> None:
    builder = ObservationBuilder(ROBOT, ("overhead",))
    builder.add_image("overhead", 0, grey(0))
    builder.add_joint_state(PERIOD + 5 * MS, NAMES, np.zeros(14))
    assert builder.missing(PERIOD + 5 * MS) == ["an image of camera 'overhead' on /overhead/image_raw/compressed"]
    builder.add_image(
        "overhead", PERIOD + 7 * MS, grey(1)
    )  # the camera is 7 ms late: the frame before stays the one used
    assert builder.ready(PERIOD + 5 * MS)
    assert builder.build(PERIOD + 5 * MS).camera_stamps_ns == {"overhead": 0}


def test_joints_may_come_in_parts_and_in_any_order() -> None:
    builder = ObservationBuilder(ROBOT)
    builder.add_joint_state(0, NAMES[::-1], np.arange(14.0)[::-1])
    builder.add_joint_state(5, ["left_waist", "somebody_elses"], [100.0, 1.0])
    assert builder.build(4).state.tolist() == list(range(14))
    assert builder.build(5).state.tolist() == [100.0, *range(1, 14)]


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_two_drivers_give_the_observation_that_the_bag_gives(seed: int) -> None:
    """Each arm has a driver, with a rate and a delay of its own; asked is for the newest instant that both have passed, as the control loop does."""
    rng = random.Random(seed)
    arms = [NAMES[span] for span in ROBOT.arm_slices]
    drivers = []
    for arm, period_ms in zip(arms, (20, 7), strict=True):
        phase = rng.randrange(period_ms)
        drivers.append([((k * period_ms + phase) * MS, arm, float(k)) for k in range(200 // period_ms)])
    bag, live = ObservationBuilder(ROBOT), ObservationBuilder(ROBOT)
    recorded = [*drivers[0], *drivers[1]]
    for stamp, arm, value in recorded:
        bag.add_joint_state(stamp, arm, [value] * 7)
    asked = sorted({stamp for stamp, _, _ in recorded})
    answered = 0
    while any(drivers):
        stamp, arm, value = rng.choice([d for d in drivers if d]).pop(0)
        live.add_joint_state(stamp, arm, [value] * 7)
        for t in [t for t in asked if live.ready(t)]:
            asked.remove(t)
            try:
                expected = bag.build(t).state.tolist()
            except AloeError:  # one arm has not been measured by then
                continue
            assert live.build(t).state.tolist() == expected
            answered += 1
    assert answered > 20


def test_the_joints_that_are_behind_are_named() -> None:
    builder = ObservationBuilder(ROBOT)
    builder.add_joint_state(0, NAMES, np.zeros(14))
    assert builder.missing(1) == ["a joint state as new as 1 ns on /joint_states"]
    builder.add_joint_state(1, NAMES[1:], np.zeros(13))
    assert builder.missing(1) == ["a joint state of left_waist as new as 1 ns on /joint_states"]
    builder.add_joint_state(1, NAMES[:1], np.zeros(1))
    assert builder.ready(1)


def test_what_is_missing_is_named() -> None:
    builder = ObservationBuilder(ROBOT, ("overhead", "left_wrist"), use_task_state=True)
    builder.add_joint_state(0, NAMES[1:], np.zeros(13))
    reasons = " | ".join(builder.missing(0))
    for part in (
        "left_waist on /joint_states",
        "'overhead' on /overhead/image_raw/compressed",
        "'left_wrist'",
        "task state",
    ):
        assert part in reasons
    with pytest.raises(AloeError, match="no joint state of 'left_waist' up to 0 ns on /joint_states"):
        builder.build(0)
    builder.add_joint_state(0, NAMES, np.zeros(14))
    with pytest.raises(AloeError, match="no image of camera 'overhead' on /overhead/image_raw/compressed"):
        builder.build(0)
    for camera in ("overhead", "left_wrist"):
        builder.add_image(camera, 0, grey(1))
    with pytest.raises(AloeError, match="no task state from the simulator"):
        builder.build(0)
    builder.add_task_state(0, [1, 2], [3])
    assert builder.ready(0)
    assert builder.build(0).object_state.tolist() == [1, 2]
    assert builder.missing(1) == ["a joint state as new as 1 ns on /joint_states", "the simulator's task state"]


def test_an_old_image_counts_as_missing() -> None:
    builder = full_builder(max_image_age_s=0.1)
    builder.build(260 * MS)
    with pytest.raises(AloeError, match=r"camera 'overhead' on .* is 0.12 s old"):
        builder.build(280 * MS)


def test_history_is_bounded_and_forgets_the_oldest() -> None:
    builder = full_builder(history=3)
    assert builder.build(180 * MS).state[0] == 9
    with pytest.raises(AloeError, match="no joint state"):
        builder.build(120 * MS)


def test_bad_input() -> None:
    builder = ObservationBuilder(ROBOT)
    with pytest.raises(AloeError, match="14 names but 2 positions"):
        builder.add_joint_state(0, NAMES, [1.0, 2.0])
    with pytest.raises(AloeError, match="has no camera 'nose'"):
        ObservationBuilder(ROBOT, ("nose",))
    builder.add_joint_state(0, NAMES, [])  # velocities alone: ignored
    assert builder.unheard() == ["joint states on /joint_states"]
    builder.add_image("overhead", 0, b"")  # not asked for: ignored


def test_images_are_decoded_to_rgb_and_resized() -> None:
    rgb = np.zeros((20, 30, 3), np.uint8)
    rgb[:, :15, 0] = 250  # left half red
    png = cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(png, None), rgb)
    np.testing.assert_array_equal(decode_image(memoryview(png), (20, 30)), rgb)
    half = decode_image(png, (10, 16))
    assert half.shape == (10, 16, 3)
    assert half[0, 0].tolist() == [250, 0, 0]
    assert half[0, -1].tolist() == [0, 0, 0]
    jpeg = cv2.imencode(".jpg", rgb[..., ::-1])[1]
    assert np.abs(decode_image(jpeg, None).astype(int) - rgb).mean() < 4
    np.testing.assert_array_equal(decode_image(rgb, (20, 30)), rgb)
    for broken in (b"not an image", b"", jpeg[:20].tobytes()):
        with pytest.raises(AloeError, match=r"camera x: \d+ bytes that are not a JPEG or PNG image"):
            decode_image(broken, None, where="camera x")
