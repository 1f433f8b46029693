"""Records of the control loop as messages, for ROS and for bags alike (`aloe_core.messages.Make`), and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from aloe_core.messages import Make, header_msg, stamp_to_ns
from aloe_core.robot import RobotDescription
from aloe_robot.control.records import ChunkRequest, ControlSnapshot, SafetyReport, TeleopInput, Transition

EMPTY = np.zeros(0)


def control_state_msg(make: Make, state: ControlSnapshot, robot: RobotDescription) -> Any:
    """`aloe_msgs/ControlState`."""
    return make(
        "aloe_msgs/msg/ControlState",
        header=header_msg(make, state.stamp_ns),
        episode_id=state.episode_id,
        tick=state.tick,
        step=state.step,
        arm_names=list(robot.arm_names),
        mode=np.array(state.mode, np.uint8),
        commanded=state.commanded,
        measured=state.measured,
        chunk_id=state.chunk_id,
        chunk_step=state.chunk_step,
        remaining_steps=state.remaining_steps,
        pending_requests=state.pending_requests,
        starved_ticks=state.starved_ticks,
        discarded_chunks=state.discarded_chunks,
        discard_reason=state.discard_reason,
        intervention_id=state.intervention_id,
        policy_version=state.policy_version,
    )


def transition_msg(make: Make, transition: Transition, robot: RobotDescription) -> Any:
    """`aloe_msgs/Transition`."""
    return make(
        "aloe_msgs/msg/Transition",
        header=header_msg(make, transition.stamp_ns),
        episode_id=transition.episode_id,
        step=transition.step,
        fragment=transition.fragment,
        arm_names=list(robot.arm_names),
        source=np.array(transition.source, np.uint8),
        executed=transition.executed,
        proposal=EMPTY if transition.proposal is None else transition.proposal,
        chunk_id=transition.chunk_id,
        chunk_step=transition.chunk_step,
        policy_version=transition.policy_version,
        intervention_id=transition.intervention_id,
        reward=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
        safety_limited=transition.safety_limited,
    )


def safety_status_msg(make: Make, report: SafetyReport, stamp_ns: int) -> Any:
    """`aloe_msgs/SafetyStatus`."""
    return make(
        "aloe_msgs/msg/SafetyStatus",
        header=header_msg(make, stamp_ns),
        state=int(report.state),
        reason=int(report.reason),
        joint=report.joint,
        message=report.message,
        counters=np.array(report.counters, np.uint64),
    )


def chunk_request_msg(make: Make, request: ChunkRequest) -> Any:
    """`aloe_msgs/ChunkRequest`."""
    return make(
        "aloe_msgs/msg/ChunkRequest",
        header=header_msg(make, request.stamp_ns),
        episode_id=request.episode_id,
        request_id=request.request_id,
        reason=int(request.reason),
        instruction=request.instruction,
        prefix_steps=request.prefix_steps,
        prefix=request.prefix.reshape(-1),
    )


def teleop_from_msg(message: Any) -> TeleopInput:
    """`aloe_msgs/TeleopCommand` -> `TeleopInput`."""
    return TeleopInput(
        stamp_ns=stamp_to_ns(message.header.stamp),
        engaged=bool(message.engaged),
        positions=np.asarray(message.positions, np.float64),
        healthy=bool(message.healthy),
        message=message.message,
    )
