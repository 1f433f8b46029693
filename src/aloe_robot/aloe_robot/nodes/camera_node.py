"""One camera of the robot description as ROS topics: images, calibration, and how well it does.

Pictures are captured in a thread (`aloe_robot.camera.Capture`); the executor is woken for the newest one, encodes and publishes it.
"""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from aloe_core.errors import AloeError
from aloe_core.messages import compressed_image_msg, header_msg, ros_make
from aloe_core.robot import load_robot, robot_file
from aloe_robot.calibration import Calibration, identity_calibration, load_calibration
from aloe_robot.camera import Capture, Frame, encode_jpeg, fit, open_source, stale_after_s
from aloe_robot.nodes.lifecycle import ManagedNode, run
from aloe_robot.nodes.parameters import declare

IMAGE_DEPTH = 2
DIAGNOSTICS_PERIOD = 1.0  # [s] wall time
TRANSPORTS = ("compressed", "raw", "both")


class CameraNode(ManagedNode):
    """See the module. Parameters say what to open; sizes, rate, topics and frame come from the robot description."""

    def __init__(self) -> None:
        super().__init__("camera_node")
        self._robot_name = declare(self, "robot", "aloha_sim")  # name or YAML file of the robot description
        self._camera_name = declare(self, "camera", "")  # which of its cameras
        self._source = declare(self, "source", "")  # instead of the description's: device, URL, video file, or `mock`
        self._loop = declare(self, "loop", True)  # a video file starts again at its end
        self._transport = declare(self, "transport", "compressed")  # compressed | raw | both
        self.quality = declare(self, "jpeg_quality", 90)  # 1..100
        self._demanded = declare(self, "exit_on_missing", False)  # a device that is missing at start-up ends the node
        self._capture: Capture | None = None
        self._wake = None

    def configure(self) -> None:
        robot, name, transport = load_robot(self._robot_name), self._camera_name, self._transport
        if not name:
            known = ", ".join(c.name for c in robot.cameras)
            raise AloeError(f"parameter 'camera' is empty; robot '{robot.name}' has: {known or 'none'}")
        self.camera = robot.camera(name)
        if transport not in TRANSPORTS:
            raise AloeError(f"parameter 'transport' is '{transport}', not one of {', '.join(TRANSPORTS)}")
        if not 1 <= self.quality <= 100:
            raise AloeError(f"parameter 'jpeg_quality' is {self.quality}, not 1..100")
        self.source = self._source or self.camera.source
        self.calibration = self._load_calibration()
        self._told_size = False
        camera, loop = self.camera, self._loop
        self._open = lambda: open_source(self.source, camera.width, camera.height, camera.rate_hz, loop)
        if self.source == "sim" or self._demanded:
            self._open().release()
        self._compressed = self._raw = None
        if transport != "raw":
            self._compressed = self.create_publisher(CompressedImage, camera.compressed_topic, IMAGE_DEPTH)
        if transport != "compressed":
            self._raw = self.create_publisher(Image, camera.raw_topic, IMAGE_DEPTH)
        self._info = self.create_publisher(CameraInfo, camera.info_topic, IMAGE_DEPTH)
        self._publishers = [p for p in (self._compressed, self._raw, self._info) if p is not None]

    def _load_calibration(self) -> Calibration:
        if self.camera.calibration is None:
            self.get_logger().warning(
                f"camera '{self.camera.name}' has no calibration; camera_info carries identity matrices"
            )
            return identity_calibration(self.camera)
        return load_calibration(robot_file(self._robot_name).parent / self.camera.calibration, self.camera)

    def activate(self) -> None:
        self._wake = self.create_guard_condition(self._publish)
        self._capture = Capture(
            self._open,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            on_frame=self._wake.trigger,
            on_error=self._tell,
        )
        self._timer = self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._capture.start()
        self.get_logger().info(
            f"camera '{self.camera.name}': {self.source}, {self.camera.width}x{self.camera.height} at {self.camera.rate_hz:g} Hz"
        )

    def deactivate(self) -> None:
        if self._capture is not None:
            self._capture.close()
            self.destroy_timer(self._timer)
            self.destroy_guard_condition(self._wake)
            self._capture = None

    def cleanup(self) -> None:
        for publisher in getattr(self, "_publishers", []):
            self.destroy_publisher(publisher)
        self._publishers = []

    def _tell(self, reason: str) -> None:
        if reason:
            self.get_logger().error(f"camera '{self.camera.name}': {reason}")
        else:
            self.get_logger().info(f"camera '{self.camera.name}' delivers pictures again")

    def _publish(self) -> None:
        frame = self._capture.take() if self._capture is not None else None
        if frame is None:
            return
        camera = self.camera
        height, width = frame.image.shape[:2]
        if (height, width) != (camera.height, camera.width) and not self._told_size:
            self._told_size = True
            self.get_logger().warning(
                f"camera '{camera.name}' delivers {width}x{height}; pictures are resized to {camera.width}x{camera.height}"
            )
        image = fit(frame.image, camera.width, camera.height)
        if self._compressed is not None:
            jpeg = encode_jpeg(image, self.quality)
            self._compressed.publish(compressed_image_msg(ros_make, frame.stamp_ns, camera.frame_id, jpeg))
        if self._raw is not None:
            self._raw.publish(
                ros_make(
                    "sensor_msgs/msg/Image",
                    header=header_msg(ros_make, frame.stamp_ns, camera.frame_id),
                    height=camera.height,
                    width=camera.width,
                    encoding="bgr8",
                    is_bigendian=0,
                    step=3 * camera.width,
                    data=image.reshape(-1),
                )
            )
        self._info.publish(self._camera_info(frame))

    def _camera_info(self, frame: Frame) -> CameraInfo:
        calibration = self.calibration
        return CameraInfo(
            header=header_msg(ros_make, frame.stamp_ns, self.camera.frame_id),
            width=calibration.image_width,
            height=calibration.image_height,
            distortion_model=calibration.distortion_model,
            d=list(calibration.distortion_coefficients.data),
            k=list(calibration.camera_matrix.data),
            r=list(calibration.rectification_matrix.data),
            p=list(calibration.projection_matrix.data),
        )

    def _report(self) -> None:
        status = self._capture.status()
        if not status.connected:
            level, message = DiagnosticStatus.ERROR[0], status.error or "waiting for the first picture"
        elif status.age_s > stale_after_s(self.camera.rate_hz):
            level, message = DiagnosticStatus.WARN[0], f"the newest picture is {status.age_s:.2f} s old"
        elif status.rate_hz < 0.9 * self.camera.rate_hz:
            level = DiagnosticStatus.WARN[0]
            message = f"{status.rate_hz:.1f} Hz instead of {self.camera.rate_hz:g} Hz"
        else:
            level, message = DiagnosticStatus.OK[0], "delivering"
        self.diagnose(
            level,
            message,
            hardware_id=self.source,
            camera=self.camera.name,
            rate_hz=status.rate_hz,
            expected_rate_hz=self.camera.rate_hz,
            captured=status.captured,
            dropped=status.dropped,
            reconnects=status.reconnects,
            age_s=status.age_s,
        )


def main() -> None:
    """Runs the node until it is interrupted."""
    run(CameraNode)


if __name__ == "__main__":
    main()
