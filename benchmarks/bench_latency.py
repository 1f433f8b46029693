"""End-to-end latency of the whole graph, from the observation to the command that it led to, with a state policy and with an image policy.

The graph is real_robot.launch.yaml with mock hardware, as separate processes over DDS: three camera_nodes at 640x480 and 30 Hz, mock_robot_node,
control_node on its 50 Hz timer, policy_node, episode_node. The policies are those of config/train/bc_state.yaml (without the object state, which only a
simulator knows) and bc_image.yaml, all three cameras. Their weights are random, which cost what trained ones do. Times are taken where they arise: stamps in
the messages, and the instant at which the sender published (DDS source timestamp), so that the measuring process adds nothing but its load. One sample per
chunk, of its oldest picture (images) or of its joint state (state):

    <sensor>_to_input   stamp (for a picture, when the driver hands it over) -> all that the policy needs for this chunk is published: the pictures,
                        the joint state and the request. JPEG encoding; the wait until the control loop asks for a chunk (pictures come every 33 ms,
                        joint states and ticks every 20 ms, so that half of either is waited on average); the request's way out.
    input_to_chunk      -> chunk published: transport, JPEG decoding and resizing, inference, from which `inference` is the policy alone.
    chunk_to_command    -> command published by the first tick that executes the chunk: transport, and up to one tick (20 ms) until it.
    <sensor>_to_command the sum.
    image_published     for comparison, of every picture: stamp -> published (hand-over to the executor, JPEG encoding).

The first WARM_UP chunks are left out. `load` is that of the machine before the graph is started.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path

import numpy as np
from result import Result

ROBOT = "bimanual_ur5e"
CHUNKS = 200  # executed chunks to measure
WARM_UP = 15  # of them left out
EXECUTE_STEPS = 8  # ticks between two requests, so that chunks come often
PATIENCE = 300.0  # [s] until CHUNKS have been executed
CONFIGS = Path(__file__).resolve().parents[1] / "config" / "train"
POLICIES = {"state": ("joints", CONFIGS / "bc_state.yaml"), "images": ("camera", CONFIGS / "bc_image.yaml")}


def run() -> list[Result]:
    """p50, p95 and p99 [ms] of every stage with each policy; chunks that were lost on the way [%]; load."""
    os.environ.update(ROS_DOMAIN_ID="95", ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", OMP_NUM_THREADS="1")
    results = []
    for name, (sensor, config) in POLICIES.items():
        results.append(Result(f"latency/{name}/load", os.getloadavg()[0], "processes"))
        samples = measure_with(config)
        lost = samples.pop("lost")
        for stage, seconds in samples.items():
            for percentile in (50, 95, 99):
                value = float(np.percentile(seconds, percentile)) * 1e3
                results.append(Result(f"latency/{name}/{stage.replace('sensor', sensor)}_p{percentile}", value, "ms"))
        results.append(Result(f"latency/{name}/chunks_not_executed", float(np.mean(lost)) * 100, "%"))
    return results


def measure_with(config: Path) -> dict[str, np.ndarray]:
    """Starts the graph with a policy of that training configuration; for each stage its samples [s]."""
    with tempfile.TemporaryDirectory() as folder:
        make_policy(Path(folder) / "policy", config)
        parameters = Path(folder) / "nodes.yaml"
        parameters.write_text(f"/**/control_node: {{ros__parameters: {{execute_steps: {EXECUTE_STEPS}}}}}\n")
        graph = subprocess.Popen(
            [
                *(sys.executable, "-m", "aloe_core.cli", "up", "real_robot.launch.yaml", "use_mock_hardware:=true"),
                *(f"robot:={ROBOT}", f"policy:={folder}/policy", f"params_file:={parameters}"),
                *("record:=false", f"bags:={folder}/bags", "log_level:=warn"),
            ],
            start_new_session=True,
        )
        try:
            return measure()
        finally:
            graph.send_signal(signal.SIGINT)
            graph.wait(60)


def make_policy(folder: Path, config_file: Path) -> None:
    """A policy with random weights that stays near home."""
    import torch

    from aloe_core.robot import load_robot
    from aloe_policy.bc_config import load_config
    from aloe_policy.checkpoint import PolicySpec
    from aloe_policy.flow import FlowPolicy
    from aloe_policy.normalisation import Normalisation

    torch.manual_seed(0)
    robot, config = load_robot(ROBOT), load_config(config_file)
    home = torch.tensor(robot.home).float()
    spread = torch.full_like(home, 0.02)
    size = (config.image_size, config.image_size) if config.cameras else None
    spec = PolicySpec.of(robot, config.horizon, config.cameras, size)
    normalisation = Normalisation({"state": (home, spread), "action": (home, spread)})
    FlowPolicy(spec, config.policy, normalisation).save(folder, "latency-0")


def measure() -> dict[str, np.ndarray]:
    """Runs one episode; for each stage its samples [s]."""
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, JointState
    from std_msgs.msg import Float64MultiArray
    from std_srvs.srv import Trigger

    from aloe_core import topics
    from aloe_core.messages import stamp_to_ns
    from aloe_core.robot import load_robot
    from aloe_msgs.msg import ActionChunk, ChunkRequest, ControlState
    from aloe_msgs.srv import StartEpisode

    robot = load_robot(ROBOT)
    pictures: dict[str, dict[int, int]] = {camera.name: {} for camera in robot.cameras}  # stamp -> published [ns]
    joints: dict[int, int] = {}  # stamp -> published [ns]
    requests: dict[int, int] = {}  # request -> published [ns]
    chunks: list[tuple[ActionChunk, int]] = []  # with the time of publication [ns]
    executed: dict[int, int] = {}  # chunk -> its first ControlState was published [ns]
    commands: list[int] = []  # published [ns]

    rclpy.init()
    node = rclpy.create_node("latency_bench")
    sensor = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)

    def raw_stamp(data: bytes) -> int:
        """Of a serialized message that begins with a header, little endian."""
        seconds, nanoseconds = struct.unpack_from("<iI", data, 4)
        return seconds * 1_000_000_000 + nanoseconds

    for camera in robot.cameras:

        def on_picture(data: bytes, info: dict, seen: dict[int, int] = pictures[camera.name]) -> None:
            seen[raw_stamp(data)] = info["source_timestamp"]

        node.create_subscription(CompressedImage, camera.compressed_topic, on_picture, sensor, raw=True)

    def on_joints(data: bytes, info: dict) -> None:
        joints[raw_stamp(data)] = info["source_timestamp"]

    def on_request(message: ChunkRequest, info: dict) -> None:
        requests[message.request_id] = info["source_timestamp"]

    def on_chunk(message: ActionChunk, info: dict) -> None:
        chunks.append((message, info["source_timestamp"]))

    def on_state(message: ControlState, info: dict) -> None:
        executed.setdefault(message.chunk_id, info["source_timestamp"])

    def on_command(message: Float64MultiArray, info: dict) -> None:
        commands.append(info["source_timestamp"])

    node.create_subscription(JointState, robot.joint_states_topic, on_joints, 50, raw=True)
    node.create_subscription(ChunkRequest, topics.CHUNK_REQUEST, on_request, 50)
    node.create_subscription(ActionChunk, topics.CHUNK, on_chunk, 50)
    node.create_subscription(ControlState, topics.CONTROL_STATE, on_state, 50)
    output = robot.arms[-1].output  # a tick's commands go out arm by arm: the last one counts
    node.create_subscription(Float64MultiArray, output.gripper_topic or output.topic, on_command, 50)
    start = node.create_client(StartEpisode, topics.START_EPISODE)
    reset = node.create_client(Trigger, topics.RESET_SAFETY)

    deadline, pending, asked = time.monotonic() + PATIENCE, None, 0.0
    while len(executed) <= CHUNKS:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(executed)} of {CHUNKS} chunks were executed in {PATIENCE:g} s")
        if pending is None and time.monotonic() > asked + 1.0 and start.service_is_ready() and reset.service_is_ready():
            asked = time.monotonic()
            reset.call_async(
                Trigger.Request()
            )  # while everything starts, joint states may have been silent for too long
            pending = start.call_async(
                StartEpisode.Request(task="benchmark", instruction="stay where you are", seed=-1)
            )
        elif pending is not None and pending.done() and not pending.result().success:
            pending = None  # some node is not ready yet
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown()

    samples: dict[str, list[float]] = defaultdict(list)
    for message, published in chunks[WARM_UP:CHUNKS]:
        samples["lost"].append(message.chunk_id not in executed)
        stamps = dict(zip(message.camera_names, map(stamp_to_ns, message.camera_stamps), strict=True))
        observed = stamp_to_ns(message.header.stamp)
        needed = [pictures[name].get(stamp) for name, stamp in stamps.items()]
        needed += [joints.get(observed), requests.get(message.request_id)]
        if samples["lost"][-1] or None in needed:  # the measuring process itself missed a message
            continue
        sent = commands[bisect_right(commands, executed[message.chunk_id]) - 1]
        complete, oldest = max(time_ns for time_ns in needed if time_ns), min(stamps.values(), default=observed)
        samples["sensor_to_input"].append((complete - oldest) / 1e9)
        samples["input_to_chunk"].append((published - complete) / 1e9)
        samples["inference"].append(message.inference_latency)
        samples["chunk_to_command"].append((sent - published) / 1e9)
        samples["sensor_to_command"].append((sent - oldest) / 1e9)
    if stamps:
        warm = chunks[WARM_UP][1]
        sent_pictures = [item for seen in pictures.values() for item in seen.items() if item[0] >= warm]
        samples["image_published"] = [(published - stamp) / 1e9 for stamp, published in sent_pictures]
    return {stage: np.array(values) for stage, values in samples.items()}
