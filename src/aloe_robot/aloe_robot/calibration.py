"""Camera calibration from a YAML file in the format of ROS's camera_info (what `camera_calibration` writes)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aloe_core.errors import AloeError
from aloe_core.robot import Camera, explain
from aloe_core.yaml_file import read_yaml

Finite = Annotated[float, Field(allow_inf_nan=False)]
IDENTITY_3X3 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
IDENTITY_3X4 = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Matrix(BaseModel):
    """Row-major numbers with their shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    cols: int
    data: tuple[Finite, ...]

    @model_validator(mode="after")
    def _sized(self) -> Matrix:
        if len(self.data) != self.rows * self.cols:
            raise ValueError(f"{len(self.data)} numbers, not {self.rows} x {self.cols}")
        return self


class Calibration(BaseModel):
    """Intrinsics of one camera: K `[3, 3]`, D, R `[3, 3]`, P `[3, 4]`, as in `sensor_msgs/CameraInfo`."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # calibrators add keys of their own

    image_width: int  # [pixel]
    image_height: int  # [pixel]
    camera_name: str = ""
    distortion_model: str
    camera_matrix: Matrix
    distortion_coefficients: Matrix
    rectification_matrix: Matrix
    projection_matrix: Matrix

    @model_validator(mode="after")
    def _shapes(self) -> Calibration:
        for key, shape in (("camera_matrix", (3, 3)), ("rectification_matrix", (3, 3)), ("projection_matrix", (3, 4))):
            matrix: Matrix = getattr(self, key)
            if (matrix.rows, matrix.cols) != shape:
                raise ValueError(f"{key} is {matrix.rows} x {matrix.cols}, not {shape[0]} x {shape[1]}")
        return self


def identity_calibration(camera: Camera) -> Calibration:
    """What an uncalibrated camera says: identity matrices, no distortion."""
    return Calibration(
        image_width=camera.width,
        image_height=camera.height,
        camera_name=camera.name,
        distortion_model="plumb_bob",
        camera_matrix=Matrix(rows=3, cols=3, data=IDENTITY_3X3),
        distortion_coefficients=Matrix(rows=1, cols=5, data=(0.0,) * 5),
        rectification_matrix=Matrix(rows=3, cols=3, data=IDENTITY_3X3),
        projection_matrix=Matrix(rows=3, cols=4, data=IDENTITY_3X4),
    )


def load_calibration(path: str | Path, camera: Camera) -> Calibration:
    """Reads a calibration made at the camera's own picture size.

    Raises:
        AloeError: the file is missing or malformed, or was made at another size; the message names file and key.
    """
    path = Path(path)
    try:
        data = read_yaml(path)
    except AloeError as error:
        raise AloeError(f"calibration of camera '{camera.name}': {error}") from None
    try:
        calibration = Calibration.model_validate(data)
    except ValidationError as error:
        raise AloeError(f"calibration of camera '{camera.name}': {path}: {explain(error)}") from None
    if (calibration.image_width, calibration.image_height) != (camera.width, camera.height):
        raise AloeError(
            f"{path} was made at {calibration.image_width}x{calibration.image_height}, camera '{camera.name}' is described as "
            f"{camera.width}x{camera.height}; calibrate at that size or change the robot description"
        )
    return calibration
