"""`aloe robot show`: a robot description as a table."""

from __future__ import annotations

from tyro.conf import Positional


def show(robot: Positional[str]) -> int:
    """Show a robot description: arms, joints with limits, grippers, outputs, cameras, safety, hash.

    Args:
        robot: Name of a description in config/robots, or a YAML file.
    """
    from aloe_core.robot import load_robot
    from aloe_robot.control.outputs import command_outputs

    description = load_robot(robot)
    simulator = f", simulated by '{description.simulator}'" if description.simulator else ""
    print(f"robot         {description.name}{simulator}")
    print(
        f"hash          {description.hash}  (what policies and bags must agree on: arms, joints, control rate, cameras)"
    )
    print(f"control rate  {description.control_rate_hz:g} Hz")
    print(f"joint states  {description.joint_states_topic}")
    print(f"actions       {description.action_dim}")

    index = 0
    for arm, output in zip(description.arms, command_outputs(description), strict=True):
        frames = f", {arm.base_frame} -> {arm.tool_frame}" if arm.base_frame or arm.tool_frame else ""
        print(f"\narm {arm.name}: {arm.output.type}{frames}")
        for topic, kind in output.topics:
            print(f"  commands on {topic} ({kind})")
        print(f"  {'':2} {'joint':28} {'min':>9} {'max':>9} {'home':>9} {'velocity':>10} {'acceler.':>10} {'jerk':>10}")
        print(
            f"  {'':2} {'':28} {'[rad]':>9} {'[rad]':>9} {'[rad]':>9} {'[rad/s]':>10} {'[rad/s^2]':>10} {'[rad/s^3]':>10}"
        )
        for joint in arm.joints:
            limits = f"{joint.max_velocity:10g} {joint.max_acceleration:10g} {joint.max_jerk:10g}"
            print(f"  {index:2} {joint.name:28} {joint.min:9.4f} {joint.max:9.4f} {joint.home:9.4f} {limits}")
            index += 1
        if gripper := arm.gripper:
            limits = f"{gripper.max_velocity:10g} {gripper.max_acceleration:10g} {gripper.max_jerk:10g}"
            print(f"  {index:2} {gripper.name:28} {0:9.4f} {1:9.4f} {gripper.home:9.4f} {limits}  [openings]")
            print(f"  {'':2} device value {gripper.closed:g} when closed (0), {gripper.open:g} when open (1)")
            index += 1

    print(f"\ncameras:{'' if description.cameras else ' none'}")
    for camera in description.cameras:
        print(
            f"  {camera.name:14} {camera.width}x{camera.height} at {camera.rate_hz:g} Hz from {camera.source}, "
            f"calibration {camera.calibration or 'none'}"
        )
        print(f"  {'':14} {camera.compressed_topic}, frame '{camera.frame_id}'")

    safety = description.safety
    print("\nsafety:")
    print(
        f"  joint states older than {safety.observation_timeout:g} s: hold; than {safety.observation_stop_timeout:g} s: stop"
    )
    print(
        f"  no usable chunk for {safety.policy_timeout:g} s: watchdog; no teleoperation for {safety.teleop_timeout:g} s: hold"
    )
    print(
        f"  {safety.max_tracking_error:g} rad between command and measurement for {safety.tracking_error_time:g} s: stop"
    )
    return 0
