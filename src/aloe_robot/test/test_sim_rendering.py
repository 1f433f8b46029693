"""The simulated cameras see the work, are deterministic, and leave nothing behind."""

import subprocess
import sys

import numpy as np
import pytest

from aloe_core.errors import AloeError
from aloe_robot.expert import Expert
from aloe_robot.sim import SimEnv


@pytest.fixture(scope="module")
def env():
    env = SimEnv("transfer_cube")
    yield env
    env.close()


def red_share(image):
    """Share of the pixels that show the red cube."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return float(((red > 120) & (green < 60) & (blue < 60)).mean())


def test_images_have_the_size_asked_for(env):
    for width, height in ((128, 128), (640, 480), (96, 64)):
        image = env.render("overhead", width, height)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous


def test_overhead_and_front_see_the_cube_wherever_it_starts(env):
    for seed in range(5):
        env.reset(seed)
        assert red_share(env.render("overhead", 128, 128)) > 0.001
        assert red_share(env.render("front", 128, 128)) > 0.001


def test_images_move_with_the_cube_the_right_way_round(env):
    """Overhead: the image's right is +x (towards the right arm), its top is +y."""
    centres = []
    for x, y in ((0.05, 0.45), (0.15, 0.45), (0.05, 0.55)):
        env.reset(0)
        env.place_objects(np.array([[x, y, 0.02, 1, 0, 0, 0]]))
        image = env.render("overhead", 128, 128).astype(int)
        rows, columns = np.nonzero((image[..., 0] > 120) & (image[..., 1] < 60))
        centres.append((rows.mean(), columns.mean()))
    assert centres[1][1] > centres[0][1] + 5
    assert centres[2][0] < centres[0][0] - 5


def test_wrist_cameras_see_what_their_gripper_does(env):
    env.reset(0)
    expert = Expert("transfer_cube")
    seen = {"right_wrist": [], "left_wrist": []}
    while not env.done:
        env.step(expert.act(env))
        if env.tick % 10 == 0:
            for camera, shares in seen.items():
                shares.append(red_share(env.render(camera, 64, 64)))
    assert env.success
    assert max(seen["right_wrist"]) > 0.02
    assert max(seen["left_wrist"]) > 0.02


def test_the_same_state_gives_the_same_picture_in_another_environment(env):
    env.reset(7)
    other = SimEnv("transfer_cube")
    other.restore_state(env.save_state())
    for camera in env.cameras:
        assert np.array_equal(env.render(camera, 64, 64), other.render(camera, 64, 64))
    other.close()
    assert env.render("front", 64, 64).any()  # closing one context leaves the other alone


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("nose", 64, 64), "camera 'nose' is not switched on"), (("overhead", 4000, 64), "4000x64 pixels")],
)
def test_impossible_images_are_named(env, arguments, sentence):
    with pytest.raises(AloeError, match=sentence):
        env.render(*arguments)


@pytest.mark.parametrize(
    "before", ["", "import weakref; weakref.finalize(type, print); "], ids=["alone", "after another"]
)
def test_rendering_leaves_nothing_to_complain_about_at_exit(before):
    """Also where somebody else had a finaliser first, as in the processes of `aloe rollout --jobs`."""
    program = "from aloe_robot.sim import SimEnv; env = SimEnv('transfer_cube'); env.render('front', 32, 32)"
    done = subprocess.run(
        [sys.executable, "-c", before + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_egl_is_one_sentence_and_physics_work_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    env = SimEnv("transfer_cube")
    env.step(env.command)
    with pytest.raises(AloeError, match="install the Debian/Ubuntu packages libegl1"):
        env.render("overhead", 64, 64)
