"""Asks the learner of a launched robot for an improvement, and waits until the robot runs the new policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.task import Future

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_msgs.action import ImprovePolicy
from aloe_msgs.msg import PolicyStatus
from aloe_robot.nodes.qos import LATCHED


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of it."""

    version: str
    checkpoint: str
    episodes: int
    transitions: int
    learn_s: float  # wall time of the improvement [s]
    reload_s: float  # until the policy node answered with the new version [s]


def learn(
    method: str,
    critic_steps: int,
    actor_steps: int,
    on_feedback: Callable[[ImprovePolicy.Feedback], None],
    ready_timeout_s: float = 30.0,
    reload_timeout_s: float = 30.0,
    namespace: str = "/",
) -> Learned:
    """One improvement in a ROS context of its own; zeros and an empty method leave the choice to the learner's configuration.

    Raises:
        AloeError: there is no learner, it failed (with its reason) or ended, or the robot did not take the new policy.
    """
    rclpy.init()
    node = Node("learn_client", namespace=namespace)
    status: list[PolicyStatus] = []
    try:
        node.create_subscription(PolicyStatus, topics.POLICY_STATUS, lambda m: status.append(m), LATCHED)
        client = ActionClient(node, ImprovePolicy, topics.IMPROVE)
        if not client.wait_for_server(ready_timeout_s):
            raise AloeError(
                f"no learner_node answers on action '{topics.IMPROVE}'; launch the robot with learner:=true"
            )
        goal = ImprovePolicy.Goal(method=method, critic_steps=critic_steps, actor_steps=actor_steps)
        began = time.monotonic()
        sent = client.send_goal_async(goal, feedback_callback=lambda m: on_feedback(m.feedback))
        server = _learners(node)
        _wait(node, sent, server)
        if not sent.result().accepted:
            raise AloeError("the learner refused: an improvement is under way")
        answer = sent.result().get_result_async()
        _wait(node, answer, server)
        result = answer.result().result
        if answer.result().status != GoalStatus.STATUS_SUCCEEDED:
            raise AloeError(f"the learner failed: {result.error_msg}")
        learned = time.monotonic()
        while not (status and status[-1].version == result.policy_version):
            if status and status[-1].rejected_version == result.policy_version:
                raise AloeError(f"policy_node refused {result.policy_version}: {status[-1].message}")
            if time.monotonic() - learned > reload_timeout_s:
                raise AloeError(f"policy_node did not take {result.policy_version} within {reload_timeout_s:.0f} s")
            rclpy.spin_once(node, timeout_sec=0.1)
        return Learned(
            version=result.policy_version,
            checkpoint=result.checkpoint_path,
            episodes=result.episodes,
            transitions=result.transitions,
            learn_s=learned - began,
            reload_s=time.monotonic() - learned,
        )
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _learners(node: Node) -> set[bytes]:
    """The learners that are there, by what DDS knows them by: one that was started again is another one."""
    status = node.resolve_topic_name(f"{topics.IMPROVE}/_action/status")
    return {bytes(publisher.endpoint_gid) for publisher in node.get_publishers_info_by_topic(status)}


def _wait(node: Node, future: Future, learners: set[bytes]) -> None:
    """Until the future is done.

    Raises:
        AloeError: none of the `learners` is there any more; of one that was killed DDS notices that in half a minute.
    """
    while not future.done():
        rclpy.spin_once(node, timeout_sec=0.5)
        if not (future.done() or learners & _learners(node)):
            raise AloeError("the learner ended in the middle of it (see its log); ask again: it goes on where it was")
