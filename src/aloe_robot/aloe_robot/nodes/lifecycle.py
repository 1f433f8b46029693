"""Lifecycle nodes that start themselves, tell what went wrong in a transition, and end in order."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node

from aloe_core import topics
from aloe_core.errors import AloeError

RCLError = rclpy_implementation.RCLError


class ManagedNode(LifecycleNode):
    """A lifecycle node whose subclasses say what to do in `configure`, `activate`, `deactivate` and `cleanup`.

    rclpy drops exceptions of transition callbacks without a word; here an `AloeError` is logged and the transition fails, anything else is logged
    with its traceback and counts as an error. The parameter `autostart` (default true) configures and activates the node at once.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.autostart: bool = self.declare_parameter("autostart", True).value
        self._diagnostics = self.create_publisher(DiagnosticArray, topics.DIAGNOSTICS, 10)
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state

    def _on_change_state(self, request, response):
        """Refuses a transition that does not exist in the present state; rclpy lets it end the process."""
        try:
            return self._change_state(request, response)
        except RCLError as error:
            self.get_logger().error(f"lifecycle transition {request.transition.id} refused: {error}")
            response.success = False
            return response

    def configure(self) -> None:
        """Reads parameters, opens what the node owns."""

    def activate(self) -> None:
        """Starts the work."""

    def deactivate(self) -> None:
        """Stops the work."""

    def cleanup(self) -> None:
        """Gives back what `configure` opened."""

    def _transition(self, work: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            work()
        except AloeError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().fatal(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state):
        return self._transition(self.configure)

    def on_activate(self, state):
        return self._transition(self.activate)

    def on_deactivate(self, state):
        return self._transition(self.deactivate)

    def on_cleanup(self, state):
        return self._transition(self.cleanup)

    def on_shutdown(self, state):
        return self._transition(self.shutdown)

    def shutdown(self) -> None:
        """Leaves the node without work under way, in whatever state it was."""
        self.deactivate()
        self.cleanup()

    def diagnose(self, level: int, message: str, **values: object) -> None:
        """Publishes one `/diagnostics` status under the node's name; `values` become its key-value pairs."""
        status = DiagnosticStatus(
            level=bytes([level]),
            name=self.get_fully_qualified_name().lstrip("/"),
            message=message,
            hardware_id=str(values.pop("hardware_id", "")),
            values=[KeyValue(key=k, value=f"{v:.6g}" if isinstance(v, float) else str(v)) for k, v in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def ignore_interrupts() -> None:
    """Called where a node begins to end: `ros2 launch` repeats the Ctrl-C that the terminal has sent, and the second must not cut the end short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Around all that a node does, with ROS begun in this process: an interrupt ends it, and is no error.

    rclpy's signal handler shuts the context down at once, in the middle of whatever the node is doing; publishing or taking a message then fails with a
    `RuntimeError`. So does a `KeyboardInterrupt` within rclpy's conversion of a message, and before the context is down. Both are the end that was asked
    for; without an interrupt it is an error like any other.
    """
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)  # before `init`: rclpy's own handler calls the one it finds
    try:
        rclpy.init()
        yield
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:
        if rclpy.ok() and not interrupts:
            raise


def give_back() -> None:
    """Returns to the system what a piece of work needed: the C library keeps it otherwise, hundreds of megabytes beside the nodes that drive the robot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def shut_down() -> None:
    """Ends ROS in this process; rclpy's signal handler may be about it at this very moment."""
    with suppress(RCLError):
        rclpy.try_shutdown()


def spin(name: str, make_node: Callable[[], Node]) -> None:
    """`main` of a node without a life cycle: spins it until it is interrupted; exit code 1 and one sentence when it cannot start."""
    node: Node | None = None
    try:
        with until_interrupted():
            node = make_node()
            rclpy.spin(node)
    except KeyboardInterrupt:  # the second of two, before the first has taken effect
        pass
    except AloeError as error:
        rclpy.logging.get_logger(name).fatal(str(error))
        raise SystemExit(1) from None
    finally:
        ignore_interrupts()
        if node is not None:
            node.destroy_node()
        shut_down()


def run(make_node: Callable[[], ManagedNode]) -> None:
    """`main` of a managed node: spins it until SIGINT or SIGTERM; exit code 1 and one sentence when it cannot start."""
    try:
        _run(make_node)
    except SystemExit as end:
        _leave(end.code)
        raise
    except KeyboardInterrupt:  # the second of two, before the first has taken effect
        pass
    _leave(0)


def _run(make_node: Callable[[], ManagedNode]) -> None:
    node: ManagedNode | None = None
    try:
        with until_interrupted():
            node = make_node()
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            if node.autostart:
                steps = (node.trigger_configure, node.trigger_activate)
                if any(step() != TransitionCallbackReturn.SUCCESS for step in steps):
                    raise SystemExit(1)
            executor.spin()
    except AloeError as error:
        rclpy.logging.get_logger(make_node.__name__).fatal(str(error))
        raise SystemExit(1) from None
    finally:
        ignore_interrupts()
        if node is not None:
            node.shutdown()
            node.destroy_node()
        shut_down()


def _leave(code: object) -> None:
    """Ends the process here if torch is loaded, with all of ours done: its own finalisers crash the interpreter's end now and then (2.13, `_del_library`)."""
    if "torch" in sys.modules and isinstance(code, int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
