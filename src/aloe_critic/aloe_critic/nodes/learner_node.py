"""The learner as a ROS node: takes in bags as they are finished, improves the policy on request, announces the new version.

One worker thread owns the store and the training; the executor only hands it jobs, so the node answers while it learns.
"""

from __future__ import annotations

import gc
import queue
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.task import Future

from aloe_core import topics
from aloe_core.errors import AloeError
from aloe_core.robot import load_robot
from aloe_critic import improvement
from aloe_critic.improve_config import load_config, overridden
from aloe_critic.improvement import ImproveConfig, ImproveResult, NoData
from aloe_critic.learner import Cancelled, Diverged, Progress
from aloe_msgs.action import ImprovePolicy
from aloe_msgs.msg import PolicyVersion, RecorderStatus
from aloe_robot.nodes.lifecycle import ManagedNode, give_back, run
from aloe_robot.nodes.qos import LATCHED

FEEDBACK_EVERY = 20  # steps
STAGES = {
    "table": ImprovePolicy.Feedback.STAGE_CRITIC,
    "critic": ImprovePolicy.Feedback.STAGE_CRITIC,
    "evaluate": ImprovePolicy.Feedback.STAGE_CRITIC,
    "actor": ImprovePolicy.Feedback.STAGE_ACTOR,
}
CODE = ImprovePolicy.Goal  # the error codes stand in the first part of the action's definition


class LearnerNode(ManagedNode):
    """See the module. Parameters: `robot`, `run`, `bags`, `policy`, `config`, `threads`."""

    def __init__(self) -> None:
        super().__init__("learner_node")
        self.declare_parameter("robot", "aloha_sim")
        self.declare_parameter("run", "runs/learner")  # folder of the run
        self.declare_parameter("bags", "bags")  # folder in which episodes are recorded
        self.declare_parameter("policy", "")  # checkpoint of the first iteration; later ones continue the run
        self.declare_parameter("config", "")  # YAML file of ImproveConfig keys; empty: the defaults
        self.declare_parameter("threads", 1)  # of the numerical library
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._server: ActionServer | None = None
        self._busy = self._stopping = False
        self._bags_seen: set[str] = set()
        self._ingested, self._message = 0, ""

    def configure(self) -> None:
        import torch

        value = lambda name: self.get_parameter(name).value  # noqa: E731
        torch.set_num_threads(value("threads"))
        self.robot = load_robot(value("robot"))
        self.run_folder, self.bags = Path(value("run")), Path(value("bags"))
        self.policy = Path(value("policy")) if value("policy") else None
        self.config = load_config(Path(value("config"))) if value("config") else ImproveConfig()
        self._versions = self.create_publisher(PolicyVersion, topics.POLICY_VERSION, LATCHED)
        self._worker = threading.Thread(target=self._work, name="learner", daemon=True)
        self._worker.start()

    def activate(self) -> None:
        self._stopping = False
        self._server = ActionServer(
            self,
            ImprovePolicy,
            topics.IMPROVE,
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self._owned = [
            self.create_subscription(RecorderStatus, topics.RECORDER_STATUS, self._on_recorder, LATCHED),
            self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME)),
        ]
        if finished := improvement.finished_iterations(self.run_folder):
            self._announce(improvement.read_result(finished[-1]))

    def deactivate(self) -> None:
        self._stopping = (
            True  # what is under way stops at the next step; its checkpoint stays and is continued by the next goal
        )
        if self._server is not None:
            self._server.destroy()
            self._server = None
        for entity in getattr(self, "_owned", []):
            entity.destroy() if hasattr(entity, "cancel") else self.destroy_subscription(entity)
        self._owned = []

    def cleanup(self) -> None:
        if self._worker is not None:
            self._jobs.put(None)
            self._worker.join()
            self._worker = None

    # -- executor -----------------------------------------------------------------------------------------------------------------------------

    def _on_goal(self, goal: ImprovePolicy.Goal) -> GoalResponse:
        if self._busy:
            self.get_logger().warning("refused a request to improve: one is under way")
            return GoalResponse.REJECT
        self._busy = True
        return GoalResponse.ACCEPT

    async def _execute(self, handle: ServerGoalHandle) -> ImprovePolicy.Result:
        done: Future = Future(executor=self.executor)
        self._jobs.put(lambda: done.set_result(self._improve(handle)))
        result, cancelled = await done
        self._busy = False
        if cancelled:
            handle.canceled()
        elif result.success:
            handle.succeed()
        else:
            handle.abort()
        return result

    def _on_recorder(self, status: RecorderStatus) -> None:
        """A bag that was closed is taken in at once, so that an improvement need not wait for it."""
        finished = status.state == RecorderStatus.STATE_IDLE and status.bag_path
        if finished and status.bag_path not in self._bags_seen:
            self._bags_seen.add(status.bag_path)
            self._jobs.put(lambda: self._take_in(Path(status.bag_path)))

    def _report(self) -> None:
        level = DiagnosticStatus.OK
        self.diagnose(
            level[0] if isinstance(level, bytes) else level,
            self._message or "waiting for a request",
            episodes=self._ingested,
            waiting_bags=self._jobs.qsize(),
        )

    # -- worker -------------------------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # whatever it was, the next request has to find somebody who works
                self.get_logger().fatal(traceback.format_exc())
            del job
            gc.collect()  # learner and replay refer to each other, and would keep files open and memory until chance finds them
            give_back()

    def _take_in(self, bag: Path) -> None:
        if self._stopping:
            return
        try:
            store, _ = improvement.ingest(self.run_folder, [bag], self.policy, self.robot)
        except AloeError as error:
            self.get_logger().warning(str(error))
            return
        self._ingested = len(store.episodes)

    def _improve(self, handle: ServerGoalHandle) -> tuple[ImprovePolicy.Result, bool]:
        """(result, whether it was cancelled)."""
        goal = handle.request
        try:
            config = overridden(
                self.config,
                method=goal.method or None,
                critic_steps=goal.critic_steps or None,
                actor_steps=goal.actor_steps or None,
            )
        except AloeError as error:
            return self._failed(CODE.BAD_REQUEST, str(error)), False
        try:
            self._on_read(handle, f"reading bags in {self.bags}", 0, 0)
            store, report = improvement.ingest(
                self.run_folder,
                [self.bags],
                self.policy,
                self.robot,
                lambda done, total: self._on_read(handle, f"reading bags in {self.bags}", done, total),
                on_images=lambda done, total: self._on_read(handle, "encoding images", done, total),
            )
            self._ingested = len(store.episodes)
            for bag, reason in report.left_out:
                self.get_logger().warning(f"left out {bag}: {reason}")
            made = improvement.improve(
                self.run_folder,
                store,
                self.policy if not improvement.finished_iterations(self.run_folder) else None,
                self.robot,
                config,
                lambda progress: self._on_progress(handle, progress),
            )
        except NoData as error:
            return self._failed(CODE.NO_DATA, str(error)), False
        except Diverged as error:
            return self._failed(CODE.DIVERGED, str(error)), False
        except Cancelled:
            return self._failed(CODE.CANCELLED, "cancelled; the next request continues from the last checkpoint"), True
        except AloeError as error:
            return self._failed(CODE.BAD_REQUEST, str(error)), False
        except Exception as error:
            self.get_logger().fatal(traceback.format_exc())
            return self._failed(CODE.INTERNAL_ERROR, str(error)), False
        self._feedback(handle, ImprovePolicy.Feedback.STAGE_SAVE, 1, 1, message=made.policy)
        self._announce(made)
        self._message = f"made {made.version}"
        result = ImprovePolicy.Result(
            success=True,
            error_code=CODE.OK,
            policy_version=made.version,
            checkpoint_path=str(Path(made.policy).resolve()),
            episodes=made.episodes,
            transitions=made.transitions,
        )
        return result, False

    def _on_read(self, handle: ServerGoalHandle, what: str, done: int, total: int) -> None:
        """Tells how far the bags are read.

        Raises:
            Cancelled: that is wanted; what was read stays in the store.
        """
        self._feedback(handle, ImprovePolicy.Feedback.STAGE_INGEST, done, total, message=what)
        if self._unwanted(handle):
            raise Cancelled

    def _on_progress(self, handle: ServerGoalHandle, progress: Progress) -> bool:
        if progress.step % FEEDBACK_EVERY == 0 or progress.step == progress.total:
            loss = progress.loss if progress.loss == progress.loss else 0.0
            self._feedback(
                handle, STAGES[progress.stage], progress.step, progress.total, loss, progress.eta_s, progress.stage
            )
        return not self._unwanted(handle)

    def _unwanted(self, handle: ServerGoalHandle) -> bool:
        return handle.is_cancel_requested or self._stopping

    def _feedback(
        self,
        handle: ServerGoalHandle,
        stage: int,
        step: int,
        total: int,
        loss: float = 0.0,
        eta: float = 0.0,
        message: str = "",
    ) -> None:
        self._message = f"{message}: {step} of {total}"
        handle.publish_feedback(
            ImprovePolicy.Feedback(stage=stage, step=step, total_steps=total, loss=loss, eta=eta, message=message)
        )

    def _failed(self, code: int, message: str) -> ImprovePolicy.Result:
        self._message = message
        self.get_logger().error(message)
        return ImprovePolicy.Result(success=False, error_code=code, error_msg=message)

    def _announce(self, made: ImproveResult) -> None:
        message = PolicyVersion(
            version=made.version,
            path=str(Path(made.policy).resolve()),
            sha256=made.sha256,
            robot_hash=self.robot.hash,
            iteration=made.iteration,
            parent_version=made.parent_version,
            method=made.method,
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._versions.publish(message)


def main() -> None:
    """Runs the node until it is interrupted."""
    run(LearnerNode)
