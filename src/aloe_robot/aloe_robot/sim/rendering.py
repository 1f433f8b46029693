"""Off-screen rendering of the cameras of a model, created on first use."""

from __future__ import annotations

import atexit
import platform
import weakref

import mujoco
import numpy as np

from aloe_core.errors import AloeError
from aloe_robot.sim.scene import CAMERAS, MAX_IMAGE_SIZE


class CameraRenderer:
    """Renders any camera at any size up to `MAX_IMAGE_SIZE` through one OpenGL context (EGL on Linux, so no display is needed).

    One context serves all sizes, and it is freed before the interpreter goes down, whoever forgets to call `close`.

    Raises:
        AloeError: EGL is missing on this machine.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._gl = _gl_context(*MAX_IMAGE_SIZE)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._finalizer = weakref.finalize(self, _free, self._gl, self._context)
        self._finalizer.atexit = False  # weakref's turn may come after that of mujoco.egl, which ends EGL as a whole
        atexit.register(self._finalizer)  # what is registered after mujoco.egl was imported comes before it

    def render(self, data: mujoco.MjData, camera: str, width: int, height: int) -> np.ndarray:
        """RGB image of a camera, uint8 `[height, width, 3]`.

        Raises:
            AloeError: no such camera, or the image is larger than `MAX_IMAGE_SIZE`.
        """
        camera_id = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if camera_id < 0:
            raise AloeError(f"the simulator has no camera '{camera}'; it has: {', '.join(CAMERAS)}")
        if not (0 < width <= MAX_IMAGE_SIZE[0] and 0 < height <= MAX_IMAGE_SIZE[1]):
            raise AloeError(
                f"camera '{camera}': an image of {width}x{height} pixels cannot be simulated, the largest is {MAX_IMAGE_SIZE[0]}x{MAX_IMAGE_SIZE[1]}"
            )
        self._gl.make_current()
        self._camera.fixedcamid = camera_id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        image = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, viewport, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the bottom

    def close(self) -> None:
        """Frees the OpenGL context; calling it twice is harmless."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def _gl_context(width: int, height: int) -> mujoco.GLContext:
    if platform.system() != "Linux":
        return mujoco.GLContext(width, height)
    try:
        from mujoco.egl import GLContext  # loads the system's EGL, hence only when a camera is used
    except (ImportError, AttributeError) as error:  # PyOpenGL raises AttributeError when the shared library is missing
        raise AloeError(
            "simulated cameras need EGL: install the Debian/Ubuntu packages libegl1 libegl-mesa0 libgl1-mesa-dri, or run without cameras"
        ) from error
    return GLContext(width, height)


def _free(gl: mujoco.GLContext, context: mujoco.MjrContext) -> None:
    gl.make_current()
    context.free()
    gl.free()
