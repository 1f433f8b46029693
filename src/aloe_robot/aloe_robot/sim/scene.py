"""The MuJoCo model: gym-aloha's ALOHA arms and objects, plus cameras that see the work.

The ViperX meshes and MJCF come inside the `gym-aloha` wheel (Apache-2.0). Only its files are used: importing the package would need gymnasium.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import mujoco
import numpy as np

from aloe_core.errors import AloeError

ARMS = ("left", "right")
CAMERAS = ("overhead", "left_wrist", "right_wrist", "front")
MAX_IMAGE_SIZE = (1280, 960)  # width, height [pixel] of the off-screen buffer

# Tool centre point: between the finger pads, in the frame of gripper_link (x towards the finger tips, y along the closing direction) [m].
TCP_OFFSET = np.array([0.135, 0.0, 0.0])
# Between the pads at finger joint position q there is a gap of 2 (q - PAD_ZERO) [m]; read off the finger meshes.
PAD_ZERO = 0.0224

_FINGER_RGBA = {
    "left": (0.2, 0.75, 0.8, 1.0),
    "right": (0.95, 0.7, 0.2, 1.0),
}  # tells grippers from arms, and left from right

# position and look-at point in the frame of the parent body, "up" direction, vertical field of view [deg]
_OVERHEAD = ((0.0, 0.42, 0.90), (0.0, 0.53, 0.05), (0.0, 1.0, 0.0), 50.0)
_FRONT = ((0.0, 0.0, 0.55), (0.0, 0.55, 0.1), (0.0, 0.0, 1.0), 60.0)
_WRIST = ((0.05, 0.0, 0.12), (0.165, 0.0, 0.0), (0.0, 0.0, 1.0), 75.0)


def assets_folder() -> Path:
    """Folder of gym-aloha's MJCF files.

    Raises:
        AloeError: the gym-aloha wheel is not installed.
    """
    spec = importlib.util.find_spec("gym_aloha")
    if spec is None or not spec.submodule_search_locations:
        raise AloeError("the simulator needs the robot model of the 'gym-aloha' wheel: pip install --no-deps gym-aloha")
    return Path(spec.submodule_search_locations[0]) / "assets"


def build_model(scene_file: str) -> mujoco.MjModel:
    """Compiles one of gym-aloha's scenes (`bimanual_viperx_*.xml`) with our cameras, and rendering set for speed without a GPU."""
    spec = mujoco.MjSpec.from_file(str(assets_folder() / scene_file))
    spec.visual.quality.offsamples = 0  # no multisampling: ten times faster in software
    spec.visual.global_.offwidth, spec.visual.global_.offheight = MAX_IMAGE_SIZE
    spec.visual.map.znear = 0.005  # times the extent: the wrist cameras look at fingers 5 cm away
    spec.option.disableflags |= (
        mujoco.mjtDisableBit.mjDSBL_AUTORESET
    )  # a diverged state is reported, never silently reset
    for light in spec.lights:
        light.castshadow = False
    for stock in list(spec.cameras):
        spec.delete(stock)
    _add_camera(spec.worldbody, "overhead", *_OVERHEAD)
    _add_camera(spec.worldbody, "front", *_FRONT)
    for arm in ARMS:
        _add_camera(spec.body(f"vx300s_{arm}/gripper_link"), f"{arm}_wrist", *_WRIST)
        for finger in ("left", "right"):
            spec.geom(f"vx300s_{arm}/10_{finger}_gripper_finger").rgba = _FINGER_RGBA[arm]
    return spec.compile()


def _add_camera(
    body: mujoco.MjsBody,
    name: str,
    position: tuple[float, float, float],
    target: tuple[float, float, float],
    up: tuple[float, float, float],
    fovy: float,
) -> None:
    """Adds a camera at `position` that looks at `target`, both in the frame of `body` [m]."""
    back = np.subtract(position, target) / math.dist(position, target)  # MuJoCo cameras look along their -z
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(back, right), back]).ravel())
    body.add_camera(name=name, pos=position, quat=quat, fovy=fovy)
