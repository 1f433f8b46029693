"""Image transport: three 640x480 cameras at 30 Hz from one process to another over DDS, publication to callback.

Raw and JPEG, with Fast DDS as it comes and with config/fastdds_large_images.xml; the subscriber is a policy's (sensor data, depth 2). Baseline of a value
with the profile: the same value without it. A frame that never arrives is lost; latencies are of those that do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from result import Result

PROFILE = Path(__file__).resolve().parents[1] / "config" / "fastdds_large_images.xml"
CAMERAS = 3
RATE = 30.0  # [Hz]
SECONDS = 6.0
WARM_UP = 30  # frames per camera left out of the statistics
SIZE = (480, 640)  # [pixel]


def run() -> list[Result]:
    """Latency percentiles [ms] and lost frames [%] for each transport and profile."""
    results = []
    for transport in ("raw", "jpeg"):
        plain, tuned = measure(transport, None), measure(transport, PROFILE)
        for key, unit in (("p50", "ms"), ("p95", "ms"), ("p99", "ms"), ("lost", "%")):
            results.append(Result(f"image_{transport}_{key}", plain[key], unit))
            results.append(Result(f"image_{transport}_{key}_large_segment", tuned[key], unit, plain[key]))
    return results


def measure(transport: str, profile: Path | None) -> dict[str, float]:
    """One run of a publisher and a subscriber process."""
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": "93",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }
    for name in (
        "FASTRTPS_DEFAULT_PROFILES_FILE",
        "FASTDDS_DEFAULT_PROFILES_FILE",
    ):  # Jazzy's name, and that of later versions
        environment.pop(name, None)
        if profile is not None:
            environment[name] = str(profile)
    command = [sys.executable, __file__]
    subscriber = subprocess.Popen(
        [*command, "subscribe", transport], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        subprocess.run([*command, "publish", transport], env=environment, check=True, timeout=120)
        output, _ = subscriber.communicate(timeout=60)
    finally:
        subscriber.kill()
    latencies = np.array(json.loads(output)) * 1e3
    expected = CAMERAS * (round(SECONDS * RATE) - WARM_UP)
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "lost": 100.0 * (1 - len(latencies) / expected)}


def _topics() -> list[str]:
    return [f"/bench/camera_{i}" for i in range(CAMERAS)]


def _publish(transport: str) -> None:
    import cv2
    import rclpy
    from sensor_msgs.msg import CompressedImage, Image

    from aloe_core.messages import compressed_image_msg, header_msg, ros_make

    rclpy.init()
    node = rclpy.create_node("bench_publisher")
    publishers = [
        node.create_publisher(Image if transport == "raw" else CompressedImage, topic, 2) for topic in _topics()
    ]
    low = np.random.default_rng(0).integers(0, 255, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
    image = cv2.resize(low, SIZE[::-1])
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    while any(p.get_subscription_count() == 0 for p in publishers):
        time.sleep(0.02)
    start = time.monotonic()
    for k in range(round(SECONDS * RATE)):
        time.sleep(max(0.0, start + k / RATE - time.monotonic()))
        for publisher in publishers:
            if transport == "raw":
                header, data = header_msg(ros_make, time.monotonic_ns(), str(k)), image.reshape(-1)
                fields = {
                    "height": SIZE[0],
                    "width": SIZE[1],
                    "encoding": "bgr8",
                    "is_bigendian": 0,
                    "step": 3 * SIZE[1],
                }
                message = ros_make("sensor_msgs/msg/Image", header=header, data=data, **fields)
            else:
                message = compressed_image_msg(ros_make, time.monotonic_ns(), str(k), jpeg)
            message.header.stamp = header_msg(ros_make, time.monotonic_ns()).stamp  # now, not before it was built
            publisher.publish(message)
    time.sleep(1.0)  # for what is under way
    node.destroy_node()
    rclpy.shutdown()


def _subscribe(transport: str) -> None:
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image

    from aloe_core.messages import stamp_to_ns

    rclpy.init()
    node = rclpy.create_node("bench_subscriber")
    latencies: list[float] = []
    last = [time.monotonic()]
    first = [True]

    def received(message) -> None:
        now = time.monotonic_ns()
        last[0], first[0] = time.monotonic(), False
        if int(message.header.frame_id) >= WARM_UP:
            latencies.append((now - stamp_to_ns(message.header.stamp)) / 1e9)

    qos = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
    for topic in _topics():
        node.create_subscription(Image if transport == "raw" else CompressedImage, topic, received, qos)
    while time.monotonic() - last[0] < (60.0 if first[0] else 2.0):
        rclpy.spin_once(node, timeout_sec=0.5)
    print(json.dumps(latencies))
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    {"publish": _publish, "subscribe": _subscribe}[sys.argv[1]](sys.argv[2])
