"""episode_node as a process, with the other nodes played by the test."""

from __future__ import annotations

import json
import signal
import sys
import threading

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from intervention_peer import LATCHED, Peer
from std_srvs.srv import SetBool

from aloe_core.messages import header_msg, ros_make
from aloe_msgs.msg import ControlState, EpisodeEvent, RecorderStatus, SafetyStatus, TaskState, TopicAudit
from aloe_msgs.srv import DiscardEpisode, LabelEpisode, ResetSim, StartEpisode, StopEpisode


class Graph(Peer):
    """Control and recorder that take up whatever episode is announced, as long as `healthy`."""

    def __init__(self, bags) -> None:
        super().__init__("graph")
        self.bags = bags
        self.healthy = True
        self.episode_id, self.step = "", 0
        self.control = self.node.create_publisher(ControlState, "control/state", 10)
        self.recorder = self.node.create_publisher(RecorderStatus, "recorder/status", LATCHED)
        self.listen(EpisodeEvent, "episode/event")
        self.node.create_subscription(EpisodeEvent, "episode/event", self.on_event, LATCHED)
        self.node.create_timer(0.05, self.tick)

    def on_event(self, event: EpisodeEvent) -> None:
        if event.event == EpisodeEvent.STARTED and self.healthy:
            if self.episode_id != event.episode_id:
                self.step = 0
                (self.bags / event.episode_id).mkdir()
            self.episode_id = event.episode_id
            heard = [TopicAudit(topic=topic, count=1) for topic in ("/control/safety", "/joint_states")]
            state = RecorderStatus.STATE_RECORDING
            self.recorder.publish(RecorderStatus(state=state, episode_id=self.episode_id, topics=heard))
        elif event.event == EpisodeEvent.STOPPED:
            self.recorder.publish(RecorderStatus(state=RecorderStatus.STATE_IDLE, episode_id=event.episode_id))
            self.episode_id = ""

    def tick(self) -> None:
        self.step += 1
        self.control.publish(ControlState(header=header_msg(ros_make, 0), episode_id=self.episode_id, step=self.step))

    def event(self, kind: int, episode_id: str) -> EpisodeEvent:
        return self.wait("episode/event", lambda e: e.event == kind and e.episode_id == episode_id)


@pytest.fixture
def graph(ros_domain, tmp_path):
    (tmp_path / "bags").mkdir()
    graph = Graph(tmp_path / "bags")
    yield graph
    graph.close()


def parameters(graph: Graph, **more) -> dict:
    """The test is as slow as the machine: silence ends nothing."""
    return {"robot": "bimanual_ur5e", "bags": str(graph.bags), "ready_timeout": 60.0, "fault_timeout": 60.0, **more}


def test_start_stop_label_discard(graph, start_node):
    start_node("aloe_intervention", "episode_node", parameters(graph))
    started = graph.call(StartEpisode, "episode/start", task="pour", episode_id="e1", instruction="pour the water")
    assert (started.success, started.episode_id) == (True, "e1")
    assert graph.event(EpisodeEvent.STARTED, "e1").instruction == "pour the water"
    assert graph.call(StartEpisode, "episode/start").error_code == StartEpisode.Request.ALREADY_RUNNING
    assert graph.call(LabelEpisode, "episode/label", outcome=1).error_code == LabelEpisode.Request.STILL_RUNNING
    assert graph.call(StopEpisode, "episode/stop", outcome=9).error_code == StopEpisode.Request.BAD_OUTCOME
    assert graph.call(StopEpisode, "episode/stop", outcome=EpisodeEvent.OUTCOME_SUCCESS).success
    stopped = graph.event(EpisodeEvent.STOPPED, "e1")
    assert (stopped.outcome, stopped.termination_reason) == (
        EpisodeEvent.OUTCOME_SUCCESS,
        EpisodeEvent.TERMINATION_OPERATOR,
    )
    assert graph.call(StopEpisode, "episode/stop").error_code == StopEpisode.Request.NOT_RUNNING

    labelled = graph.call(LabelEpisode, "episode/label", outcome=EpisodeEvent.OUTCOME_FAILURE)
    assert (labelled.success, labelled.episode_id) == (True, "e1")
    assert graph.event(EpisodeEvent.LABELLED, "e1").outcome == EpisodeEvent.OUTCOME_FAILURE
    assert json.loads((graph.bags / "e1" / "labels.jsonl").read_text())["outcome"] == "failure"
    assert graph.call(LabelEpisode, "episode/label", outcome=9).error_code == LabelEpisode.Request.BAD_OUTCOME
    unknown = graph.call(LabelEpisode, "episode/label", episode_id="e7", outcome=1)
    assert (unknown.error_code, "e7" in unknown.error_msg) == (LabelEpisode.Request.UNKNOWN_EPISODE, True)

    discarded = graph.call(DiscardEpisode, "episode/discard", reason="spilled")
    assert discarded.moved_to == str(graph.bags / "discarded" / "e1")
    assert (graph.bags / "discarded" / "e1" / "labels.jsonl").is_file()
    graph.event(EpisodeEvent.DISCARDED, "e1")


def test_running_episode_survives_a_kill(graph, start_node):
    node = start_node("aloe_intervention", "episode_node", parameters(graph))
    assert graph.call(StartEpisode, "episode/start", episode_id="e1").success
    node.stop(signal.SIGKILL)
    graph.got["episode/event"].clear()
    again = start_node("aloe_intervention", "episode_node", parameters(graph))
    again.wait_for("'e1' was running when this node ended")
    graph.event(EpisodeEvent.STARTED, "e1")
    again.wait_for("episode_node has restarted and goes on")
    discarded = graph.call(DiscardEpisode, "episode/discard")
    assert discarded.success
    assert graph.event(EpisodeEvent.STOPPED, "e1").termination_reason == EpisodeEvent.TERMINATION_OPERATOR
    assert not (graph.bags / "e1").exists()


def test_an_interrupted_run_of_episodes_stops_the_one_under_way(graph, start_node, start_process):
    start_node("aloe_intervention", "episode_node", parameters(graph))
    command = [sys.executable, "-m", "aloe_core.cli", "episodes", "--task", "pour", "--seed", "-1", "--count", "2"]
    for signum, healthy in ((signal.SIGINT, True), (signal.SIGTERM, False)):  # while it runs, while it starts
        graph.healthy = healthy
        graph.got["episode/event"].clear()
        runner = start_process(command, name="aloe episodes")
        started = graph.wait("episode/event", lambda e: e.event == EpisodeEvent.STARTED)
        if healthy:
            graph.call(StartEpisode, "episode/start")  # refused, and by then the first start has been answered
        assert runner.stop(signum) == 130
        assert f"stopped episode {started.episode_id}" in runner.lines
        stopped = graph.event(EpisodeEvent.STOPPED, started.episode_id)
        assert (stopped.outcome, stopped.termination_reason) == (
            EpisodeEvent.OUTCOME_UNLABELLED,
            EpisodeEvent.TERMINATION_OPERATOR,
        )
        assert graph.call(StopEpisode, "episode/stop").error_code == StopEpisode.Request.NOT_RUNNING


def test_episodes_of_a_robot_in_a_namespace_and_a_start_that_is_refused(graph, start_process):
    def start(request, response):
        response.error_code = StartEpisode.Request.ALREADY_RUNNING
        response.error_msg = f"episode 'e1' is running, not {request.task}"
        return response

    graph.node.create_service(StartEpisode, "/cell/episode/start", start)
    command = [sys.executable, "-m", "aloe_core.cli", "episodes", "--task", "pour", "--namespace", "cell"]
    runner = start_process(command, name="aloe episodes")
    assert runner.wait() == 1
    assert runner.lines[-1] == (
        "aloe: the episode was not started: episode 'e1' is running, not pour; "
        "stop it with `aloe operate` (key x) or the service episode/stop"
    )


def test_missing_nodes_are_named_while_other_calls_are_served(graph, start_node):
    graph.healthy = False
    start_node("aloe_intervention", "episode_node", parameters(graph, ready_timeout=10.0))
    answered: list[str] = []
    calls = {name: graph.ask(StartEpisode, "episode/start", episode_id=name) for name in ("e1", "e2")}
    for name, future in calls.items():
        future.add_done_callback(lambda _, n=name: answered.append(n))
    refused, second = graph.answer(calls["e1"]), graph.answer(calls["e2"])
    assert answered == ["e2", "e1"]  # the executor was free to refuse the second call while the first waited
    assert second.error_code == StartEpisode.Request.ALREADY_RUNNING
    assert refused.error_code == StartEpisode.Request.NOT_READY
    assert "control_node" in refused.error_msg
    assert "recorder_node" in refused.error_msg
    assert graph.event(EpisodeEvent.STOPPED, "e1").termination_reason == EpisodeEvent.TERMINATION_FAULT

    safety = graph.publisher(SafetyStatus, "control/safety", LATCHED)
    safety.publish(SafetyStatus(state=SafetyStatus.STATE_STOPPED, message="tracking error"))
    for _ in range(200):
        refused = graph.call(StartEpisode, "episode/start")
        if refused.error_code == StartEpisode.Request.SAFETY_STOPPED:
            break
    assert "tracking error" in refused.error_msg


def test_simulated_episode_ends_with_the_task(graph, start_node):
    calls: list[str] = []
    ran = threading.Event()

    def reset(request, response):
        calls.append(f"reset {request.task} {request.seed} {request.episode_id}")
        response.success, response.instruction, response.time_limit = True, "hand it over", 8.0
        return response

    def run(request, response):
        calls.append(f"run {request.data}")
        response.success = True
        ran.set()
        return response

    graph.node.create_service(ResetSim, "sim/reset", reset)
    graph.node.create_service(SetBool, "sim/run", run)
    start_node("aloe_intervention", "episode_node", parameters(graph, simulator=True))
    started = graph.call(StartEpisode, "episode/start", task="transfer_cube", seed=3, episode_id="e1")
    assert started.success, started.error_msg
    assert calls == ["reset transfer_cube 3 e1", "run True"]
    event = graph.event(EpisodeEvent.STARTED, "e1")
    assert (event.instruction, event.time_limit, event.seed) == ("hand it over", 8.0, 3)
    task = graph.publisher(TaskState, "sim/task_state", 10)
    task.publish(
        TaskState(episode_id="e1", task="transfer_cube", outcome=TaskState.OUTCOME_FAILURE, outcome_message="cube fell")
    )
    stopped = graph.event(EpisodeEvent.STOPPED, "e1")
    assert (stopped.outcome, stopped.termination_reason) == (
        EpisodeEvent.OUTCOME_FAILURE,
        EpisodeEvent.TERMINATION_TASK,
    )
    assert stopped.message == "cube fell"


def test_bad_parameters_end_the_node_with_a_sentence(ros_domain, start_node, tmp_path):
    (tmp_path / "file").write_text("")
    cases = [
        ({"robot": "nobody"}, "unknown robot 'nobody'"),
        ({"bags": str(tmp_path / "file" / "bags")}, "cannot make the bags folder"),
        ({"bags": str(tmp_path / "bags"), "ready_timeout": -1.0}, "'ready_timeout' is -1.0 s"),
        ({"bags": str(tmp_path / "bags"), "time_limit": "long"}, "parameter 'time_limit': 'long' is not of type float"),
    ]
    started = [(start_node("aloe_intervention", "episode_node", p), text) for p, text in cases]
    for node, sentence in started:
        assert node.wait() == 1
        assert sentence in node.output
        assert "Traceback" not in node.output
