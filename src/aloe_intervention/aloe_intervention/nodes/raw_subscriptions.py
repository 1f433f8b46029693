"""Subscriptions that hand over serialized bytes, and follow what the publishers offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from aloe_core.bag_format import TopicQos
from aloe_core.errors import AloeError
from aloe_core.messages import ros_class
from aloe_intervention.recording_topics import TopicSpec, discovered_topic, matching_qos

Receive = Callable[[str, TopicSpec, bytes, dict], None]  # topic, serialized message, rclpy's message info


class RawSubscriptions:
    """One subscription per topic, each with the strongest quality of service that its publishers offer.

    Args:
        node: owner.
        receive: called with each message.
        lost: called with a topic and the number of messages that DDS says it lost.
    """

    def __init__(self, node: Node, receive: Receive, lost: Callable[[str, int], None]) -> None:
        self._node = node
        self._receive = receive
        self._lost = lost
        self._open: dict[str, tuple[TopicSpec, TopicQos, Subscription]] = {}

    @property
    def topics(self) -> dict[str, tuple[TopicSpec, TopicQos]]:
        """Absolute name -> what is expected and how it is subscribed."""
        return {topic: (spec, qos) for topic, (spec, qos, _) in self._open.items()}

    def add(self, topic: str, spec: TopicSpec) -> None:
        """Subscribes to the absolute name `topic`."""
        self._subscribe(topic, spec, matching_qos(spec, self._offers(topic)))

    def discover(self, wanted: Iterable[str]) -> list[str]:
        """Subscribes to those of `wanted` that somebody publishes by now; returns all that need not be looked for any more."""
        types = dict(self._node.get_topic_names_and_types())
        found = sorted(set(wanted) & set(types))
        for topic in found:
            try:
                self.add(topic, discovered_topic(topic, types[topic]))
            except AloeError as error:
                self._node.get_logger().error(str(error))
        return found

    def follow(self) -> None:
        """Subscribes anew where publishers offer something else than was assumed before they were there."""
        for topic, (spec, qos, subscription) in list(self._open.items()):
            offers = self._offers(topic)
            if offers and (wanted := matching_qos(spec, offers)) != qos:
                self._node.get_logger().info(
                    f"{topic} is offered {wanted.reliability}, {wanted.durability}: subscribing anew"
                )
                self._node.destroy_subscription(subscription)
                self._subscribe(topic, spec, wanted)

    def close(self) -> None:
        """Ends all subscriptions."""
        for _, _, subscription in self._open.values():
            self._node.destroy_subscription(subscription)
        self._open.clear()

    def _offers(self, topic: str) -> list[tuple[bool, bool]]:
        """(reliable, transient local) of each publisher."""
        profiles = [p.qos_profile for p in self._node.get_publishers_info_by_topic(topic)]
        return [
            (p.reliability == ReliabilityPolicy.RELIABLE, p.durability == DurabilityPolicy.TRANSIENT_LOCAL)
            for p in profiles
        ]

    def _subscribe(self, topic: str, spec: TopicSpec, qos: TopicQos) -> None:
        latched, reliable = qos.durability == "transient_local", qos.reliability == "reliable"
        subscription = self._node.create_subscription(
            ros_class(spec.type),
            topic,
            partial(self._receive, topic, spec),
            QoSProfile(
                depth=qos.depth,
                reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
            ),
            raw=True,
            event_callbacks=SubscriptionEventCallbacks(message_lost=lambda e: self._lost(topic, e.total_count_change)),
        )
        self._open[topic] = (spec, qos, subscription)
