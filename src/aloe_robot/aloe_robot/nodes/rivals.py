"""Notices that somebody else commands our arms.

A publisher that DDS knows is not yet a rival: a killed process stays in the graph for up to 20 s. Once there is a second publisher on a topic, its
messages are counted, and more of them than we sent ourselves prove that another process commands the arm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription

LOOKS = 50  # looks that are summed up: a trajectory controller is sent a few messages a second at most
MARGIN = 2  # messages more than sent that prove nothing: they may be under way between two looks


class _Topic:
    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.sent = self.heard = 0
        self.listener: Subscription | None = None
        self.connected = False
        self.looks: deque[int] = deque(maxlen=LOOKS)


class RivalWatch:
    """Watches the topics of `publishers` (topic -> our own publisher)."""

    def __init__(self, node: Node, publishers: Mapping[str, Publisher]) -> None:
        self._node = node
        self._topics = {name: _Topic(publisher) for name, publisher in publishers.items()}

    def sent(self, topic: str) -> None:
        """We have published a message."""
        self._topics[topic].sent += 1

    def look(self) -> str:
        """To be called about ten times a second: who else commands, in one sentence; empty: nobody."""
        sentence = ""
        for name, topic in self._topics.items():
            if self._node.count_publishers(topic.publisher.topic_name) < 2:
                self._ignore(topic)
                continue
            if topic.listener is None:

                def count(_: bytes, topic: _Topic = topic) -> None:
                    topic.heard += 1

                kind = topic.publisher.msg_type
                topic.listener = self._node.create_subscription(kind, name, count, 50, raw=True)
            if topic.connected:
                topic.looks.append(topic.heard - topic.sent)
            topic.connected |= topic.heard > 0  # what was sent before the listener heard anything does not count
            topic.heard = topic.sent = 0
            if sum(topic.looks) > MARGIN:
                sentence = sentence or f"{self._others(topic)} also commands {name}; stop one of the two"
        return sentence

    def close(self) -> None:
        """Stops listening."""
        for topic in self._topics.values():
            self._ignore(topic)

    def _ignore(self, topic: _Topic) -> None:
        if topic.listener is not None:
            self._node.destroy_subscription(topic.listener)
            topic.listener = None
        topic.looks.clear()
        topic.connected, topic.heard, topic.sent = False, 0, 0

    def _others(self, topic: _Topic) -> str:
        infos = self._node.get_publishers_info_by_topic(topic.publisher.topic_name)
        names = {f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos}
        return ", ".join(sorted(names - {self._node.get_fully_qualified_name()})) or "a second control_node"
