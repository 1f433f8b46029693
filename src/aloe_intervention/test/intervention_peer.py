"""A node in the test process that plays the other nodes of the graph: publishes, listens and calls services from the test's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile

from aloe_core.supervisor import ros_arguments
from aloe_robot.nodes.qos import LATCHED


@contextmanager
def node_here(make: Callable[[], Any], **parameters: Any) -> Iterator[Any]:
    """A node in the test's own process; spun by nobody."""
    rclpy.init(args=ros_arguments(parameters=[{k.replace("__", "."): v for k, v in parameters.items()}]))
    node = None
    try:
        node = make()
        yield node
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


class Peer:
    """One node, spun by a thread. `got[topic]` holds what came."""

    def __init__(self, name: str = "peer") -> None:
        self.context = rclpy.Context()
        self.context.init()
        self.node = rclpy.create_node(name, context=self.context)
        self.got: dict[str, list[Any]] = {}
        self._grew = threading.Condition()
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._closing = False
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self) -> None:
        while not self._closing:
            self.executor.spin_once(timeout_sec=0.1)

    def listen(self, kind: type, topic: str, qos: QoSProfile | int = LATCHED) -> None:
        self.got[topic] = []

        def add(message: Any) -> None:
            with self._grew:
                self.got[topic].append(message)
                self._grew.notify_all()

        self.node.create_subscription(kind, topic, add, qos)

    def wait(self, topic: str, suits: Callable[[Any], bool], timeout: float = 60.0) -> Any:
        """The first message on `topic` that suits."""
        message = self.look(topic, suits, timeout)
        if message is None:
            last = str(self.got[topic][-1:])[:1000]
            pytest.fail(f"none of {len(self.got[topic])} messages on {topic} suits after {timeout} s; the last: {last}")
        return message

    def look(self, topic: str, suits: Callable[[Any], bool], timeout: float) -> Any:
        """The first message on `topic` that suits, or None if there is none within `timeout` [s]."""
        deadline = time.monotonic() + timeout
        with self._grew:
            while True:
                for message in self.got[topic]:
                    if suits(message):
                        return message
                if not self._grew.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def publisher(
        self, kind: type, topic: str, qos: QoSProfile | int, subscribers: int = 1, timeout: float = 60.0
    ) -> Any:
        """A publisher that has been matched by `subscribers` subscriptions."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(kind, topic, qos)
        publisher, deadline = self._publishers[topic], time.monotonic() + timeout
        while publisher.get_subscription_count() < subscribers:
            assert time.monotonic() < deadline, f"nobody subscribes to {topic}"
            time.sleep(0.02)
        return publisher

    def ask(self, kind: type, service: str, **request: Any) -> Any:
        """The future of a service call."""
        client = self._clients.setdefault(service, None) or self.node.create_client(kind, service)
        self._clients[service] = client
        assert client.wait_for_service(60.0), f"nobody offers {service}"
        return client.call_async(kind.Request(**request))

    def call(self, kind: type, service: str, timeout: float = 60.0, **request: Any) -> Any:
        """The answer of a service call."""
        return self.answer(self.ask(kind, service, **request), timeout)

    @staticmethod
    def answer(future: Any, timeout: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout
        while not future.done():
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.01)
        return future.result()

    def close(self) -> None:
        self._closing = True  # what a thread waits for must not be destroyed under it
        self.thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
