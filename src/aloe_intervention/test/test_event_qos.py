# ruff: noqa: E402
"""`episode/event` between a writer that keeps one event and readers that hold ten: none is lost on a slow reader, none is old news to a late one."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from intervention_peer import LATCHED, Peer, node_here
from rclpy.task import Future

from aloe_core import topics
from aloe_intervention.nodes import episode_client
from aloe_intervention.nodes.console_node import ConsoleNode
from aloe_intervention.nodes.episode_client import EpisodeClient
from aloe_intervention.nodes.episode_node import EpisodeNode
from aloe_intervention.nodes.teleop_node import TeleopNode
from aloe_msgs.msg import ControlState, EpisodeEvent
from aloe_robot.nodes.sim_node import SimNode

EVENTS = [
    (EpisodeEvent.STARTED, "e1"),
    (EpisodeEvent.STOPPED, "e1"),
    (EpisodeEvent.LABELLED, "e1"),
    (EpisodeEvent.STARTED, "e2"),
    (EpisodeEvent.STOPPED, "e2"),
    (EpisodeEvent.DISCARDED, "e2"),
]
ROBOT = SimpleNamespace(arm_names=("left",), control_rate_hz=50.0)
READERS = {
    "client": EpisodeClient,
    "console": lambda: ConsoleNode(ROBOT, "", -1),
    "teleop": TeleopNode,
    "sim": SimNode,
}


@pytest.fixture
def writer(ros_domain):
    peer = Peer("writer")
    yield peer
    peer.close()


def publish(writer: Peer, events: list[tuple[int, str]]) -> None:
    publisher = writer.publisher(EpisodeEvent, topics.EPISODE_EVENT, LATCHED, subscribers=0)
    for kind, episode_id in events:
        publisher.publish(EpisodeEvent(event=kind, episode_id=episode_id))


class Reader:
    """Looks at the subscription of a node when it is told to, in place of the node's callback."""

    def __init__(self, node) -> None:
        self._node = node
        (subscription,) = [s for s in node.subscriptions if s.topic_name == "/" + topics.EPISODE_EVENT]
        self.found: list[tuple[int, str]] = []
        subscription.callback = lambda message: self.found.append((message.event, message.episode_id))

    def read(self, count: int) -> list[tuple[int, str]]:
        """The `count` events that have come since the last look, and what is there beyond them."""
        self.found.clear()
        end = time.monotonic() + 20.0
        while len(self.found) < count and time.monotonic() < end:
            rclpy.spin_once(self._node, timeout_sec=0.1)
        for _ in range(5):
            rclpy.spin_once(self._node, timeout_sec=0.1)
        return self.found


@pytest.mark.parametrize("reader", READERS)
def test_a_slow_reader_misses_nothing(writer, reader):
    with node_here(READERS[reader], cameras=False) as node:
        looks = Reader(node)
        publish(writer, EVENTS[:1])
        assert looks.read(1) == EVENTS[:1]
        publish(writer, EVENTS)
        time.sleep(0.5)  # all have arrived before the reader looks
        assert looks.read(len(EVENTS)) == EVENTS


@pytest.mark.parametrize("reader", READERS)
def test_a_late_reader_hears_the_newest_only(writer, reader):
    publish(writer, EVENTS)
    with node_here(READERS[reader], cameras=False) as node:
        assert Reader(node).read(1) == EVENTS[-1:]


def test_the_writer_keeps_one_event(ros_domain, tmp_path):
    """Else a node that starts late would take up episodes that are long over."""
    with node_here(EpisodeNode, bags=str(tmp_path)) as node:
        assert (node.events.qos_profile.depth, node.events.qos_profile.durability) == (1, LATCHED.durability)


def test_the_end_that_counts_is_the_first_word_of_it(ros_domain):
    with node_here(EpisodeClient) as client:
        for kind, outcome in ((EpisodeEvent.STOPPED, 1), (EpisodeEvent.LABELLED, 2)):
            client._on_event(EpisodeEvent(event=kind, episode_id="e1", outcome=outcome))
        assert client._ended["e1"].outcome == 1
        client._on_event(EpisodeEvent(event=EpisodeEvent.STARTED, episode_id="e1"))
        assert client._ended == {}


def test_a_start_whose_answer_was_lost_is_known_by_its_event(ros_domain, monkeypatch):
    monkeypatch.setattr(episode_client, "ANSWER_TIMEOUT", 0.5)
    with node_here(EpisodeClient) as client:

        def start(request):
            event = EpisodeEvent(event=EpisodeEvent.STARTED, task="transfer_cube", seed=7, episode_id="other")
            client._on_event(event)  # of somebody else's, who has another seed
            event.seed, event.episode_id = request.seed, "ours"
            client._on_event(event)
            for step in range(3):
                client._on_control(ControlState(episode_id="ours", step=step))
            return Future()  # is never answered

        def end():
            if client._running == "ours":
                client._on_event(EpisodeEvent(event=EpisodeEvent.STOPPED, episode_id="ours", outcome=1))

        client.create_timer(0.1, end)
        monkeypatch.setattr(client._start, "call_async", start)
        result = client.run("transfer_cube", seed=3, time_limit=0.0, timeout_s=20.0, recorded=False)
        assert (result.episode_id, result.outcome, result.steps) == ("ours", 1, 3)


def test_an_interrupt_waits_for_what_it_comes_in_the_middle_of(ros_domain):
    """Raised there, rclpy's conversion of a message made a `RuntimeError` of it, and the episode was not stopped."""
    with node_here(EpisodeClient) as client, client.interrupt:
        through = []

        def convert():
            signal.raise_signal(signal.SIGINT)
            through.append(True)

        timer = client.create_timer(0.01, convert)
        try:
            with pytest.raises(KeyboardInterrupt):
                client._spin(lambda: False, 20.0, "the interrupt")
            assert through == [True]
            with pytest.raises(KeyboardInterrupt):  # and no episode is begun after it
                client.run("transfer_cube", seed=3, time_limit=0.0, timeout_s=20.0, recorded=False)
            assert client.stop() == ""
        finally:
            timer.cancel()


@pytest.mark.parametrize("kind", [EpisodeEvent.STOPPED, EpisodeEvent.LABELLED, EpisodeEvent.DISCARDED])
def test_the_simulator_stands_still_whatever_tells_of_the_end(ros_domain, kind):
    with node_here(SimNode, cameras=False) as node:
        node.episode_id, node.running = "e1", True
        node._on_event(EpisodeEvent(event=EpisodeEvent.STARTED, episode_id="e1"))
        assert node.running
        node._on_event(EpisodeEvent(event=kind, episode_id="e1"))
        assert not node.running
