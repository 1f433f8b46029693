"""The life of an episode without ROS: every way in, every way out, and names that cannot leave their folder."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe_core.bag_labels import read_labels
from aloe_core.errors import AloeError
from aloe_core.vocabulary import EventType, Outcome, SafetyState, Termination
from aloe_intervention.episode_store import EpisodeStore, check_name
from aloe_intervention.episode_types import (
    Announce,
    AnswerDiscard,
    AnswerStart,
    AskReset,
    AskRun,
    EpisodeConfig,
    Now,
    Save,
    StartError,
    StartRequest,
)
from aloe_intervention.episodes import ALLOWED, EpisodeManager, Phase

HARDWARE = EpisodeConfig(simulator=False, require_recorder=True, ready_timeout_s=10.0, fault_timeout_s=5.0)
SIMULATION = dataclasses.replace(HARDWARE, simulator=True)


class World:
    """A manager with hand-driven clocks; collects what it asks for and carries out `Save`."""

    def __init__(self, bags, config: EpisodeConfig = HARDWARE) -> None:
        self.store = EpisodeStore(bags)
        self.seconds = 100.0
        self.config = config
        self.manager = EpisodeManager(config, self.store, self.now)
        self.effects: list = []

    @property
    def now(self) -> Now:
        return Now(round(self.seconds * 1e9), self.seconds)

    def do(self, effects) -> list:
        for effect in effects:
            if isinstance(effect, Save):
                self.store.save(effect.episode)
        self.effects += effects
        return [e for e in effects if not isinstance(e, Save)]

    def start(self, call: int = 1, **request) -> list:
        return self.do(self.manager.start(call, StartRequest(**request), self.now))

    def control(self, episode_id: str, step: int = 0) -> list:
        return self.do(self.manager.on_control_state(episode_id, step, self.now))

    def recorder(self, episode_id: str, state: str = "recording", message: str = "", hears: bool = True) -> list:
        recording, busy, failed = state == "recording", state in ("recording", "finalizing"), state == "error"
        return self.do(self.manager.on_recorder(episode_id, recording, busy, failed, message, hears, self.now))

    def safety(self, state: SafetyState, message: str = "") -> list:
        return self.do(self.manager.on_safety(state, message, self.now))

    def tick(self, after: float = 0.0) -> list:
        self.seconds += after
        return self.do(self.manager.tick(self.now))

    def stop(self, outcome=Outcome.SUCCESS, termination=Termination.NONE, message="") -> list:
        return self.do(self.manager.stop(outcome, termination, message, self.now))

    def discard(self, episode_id: str = "", call: int = 7) -> list:
        return self.do(self.manager.discard(call, episode_id, "spilled", self.now))

    def run(self, episode_id: str = "e1", **request) -> None:
        """Brings an episode to RUNNING, with a bag folder."""
        self.start(episode_id=episode_id, task="pour", **request)
        (self.store.bags / episode_id).mkdir()
        self.recorder(episode_id)
        self.control(episode_id)
        assert self.manager.phase is Phase.RUNNING

    def stopped(self) -> Announce:
        """The one STOPPED event."""
        (event,) = [e for e in self.effects if isinstance(e, Announce) and e.event is EventType.STOPPED]
        return event


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "bags")


def test_hardware_start_waits_for_control_and_recorder(world):
    (announced,) = world.start(call=3, task="pour_water", episode_id="e1", time_limit_s=8.0)
    assert (announced.event, announced.episode.instruction) == (EventType.STARTED, "pour water")
    assert world.control("e0") == []
    assert world.control("e1") == []
    assert world.recorder("e1", "idle") == []
    assert world.recorder("e1") == [AnswerStart(3, StartError.OK, "", "e1")]
    assert world.manager.running_id == "e1"


def test_an_episode_waits_until_the_recorder_hears_control_and_robot(world):
    world.start(call=1, episode_id="e1")
    world.control("e1")
    assert world.recorder("e1", hears=False) == []
    assert world.recorder("e1") == [AnswerStart(1, StartError.OK, "", "e1")]


def test_simulation_resets_announces_and_releases(tmp_path):
    world = World(tmp_path, SIMULATION)
    (reset,) = world.start(call=1, episode_id="e1", seed=5)
    assert isinstance(reset, AskReset)
    world.do(world.manager.on_task_state("", "transfer_cube", Outcome.UNLABELLED, "", world.now))
    (announced,) = world.do(world.manager.on_reset("e1", "", False, "hand the cube over", 8.0, world.now))
    assert announced.episode.task == "transfer_cube"
    assert (announced.episode.instruction, announced.episode.time_limit_s, announced.episode.seed) == (
        "hand the cube over",
        8.0,
        5,
    )
    world.recorder("e1")
    assert world.control("e1") == [AskRun("e1")]
    assert world.do(world.manager.on_run("e1", "", world.now)) == [AnswerStart(1, StartError.OK, "", "e1")]
    world.do(world.manager.on_task_state("e0", "transfer_cube", Outcome.FAILURE, "", world.now))  # the episode before
    assert world.manager.phase is Phase.RUNNING
    world.do(world.manager.on_task_state("e1", "transfer_cube", Outcome.SUCCESS, "", world.now))
    stopped = world.stopped().episode
    assert (stopped.outcome, stopped.termination) == (Outcome.SUCCESS, Termination.TASK)


def test_simulated_time_out_is_a_time_limit(tmp_path):
    world = World(tmp_path, dataclasses.replace(SIMULATION, require_recorder=False))
    world.start(episode_id="e1", seed=0)
    world.do(world.manager.on_reset("e1", "", False, "", 8.0, world.now))
    world.control("e1")
    world.do(world.manager.on_run("e1", "", world.now))
    world.do(world.manager.on_task_state("e1", "t", Outcome.TIMEOUT, "", world.now))
    assert (world.stopped().episode.outcome, world.stopped().episode.termination) == (
        Outcome.TIMEOUT,
        Termination.TIME_LIMIT,
    )


def test_seeds_count_on_when_none_is_named(tmp_path):
    world = World(tmp_path, SIMULATION)
    seeds = []
    for _ in range(2):
        (reset,) = world.start(task="t")
        seeds.append(reset.episode.seed)
        world.do(world.manager.on_reset(reset.episode.episode_id, "", False, "", 1.0, world.now))
        world.stop()
        world.seconds += 1
    assert seeds == [0, 1]


@pytest.mark.parametrize(
    "bad", [{"task": "../x"}, {"episode_id": "a/b"}, {"time_limit_s": -1.0}, {"time_limit_s": float("nan")}]
)
def test_bad_requests_are_refused_and_change_nothing(world, bad):
    (answer,) = world.start(**bad)
    assert answer.error is StartError.BAD_REQUEST
    assert world.manager.phase is Phase.IDLE


def test_a_name_is_used_once(world):
    world.run("e1")
    world.stop()
    (answer,) = world.start(episode_id="e1")
    assert answer.error is StartError.BAD_REQUEST
    assert "never overwritten" in answer.message


def test_second_start_is_refused_and_the_first_goes_on(world):
    world.start(call=1, episode_id="e1")
    (answer,) = world.start(call=2, episode_id="e2")
    assert (answer.call, answer.error, answer.episode_id) == (2, StartError.ALREADY_RUNNING, "e1")
    world.recorder("e1")
    assert world.control("e1") == [AnswerStart(1, StartError.OK, "", "e1")]


@pytest.mark.parametrize("config", [HARDWARE, SIMULATION])
def test_a_start_waits_until_the_bag_before_is_closed(tmp_path, config):
    world = World(tmp_path, config)
    world.recorder("e1")
    assert world.start(call=2, task="pour", episode_id="e2") == []
    assert world.manager.running_id == "e2"
    assert world.start(call=3)[0].message == "episode 'e2' is waiting"
    assert world.recorder("e1", "finalizing") == world.tick(1.0) == []
    (asked,) = world.recorder("e1", "idle")
    assert isinstance(asked, AskReset if config.simulator else Announce)
    assert asked.episode.episode_id == "e2"


def test_a_start_does_not_wait_for_a_dead_recorder(world):
    world.recorder("e1")
    assert world.start(episode_id="e2") == world.tick(4.0) == []
    (announced,) = world.tick(2.0)
    assert announced.event is EventType.STARTED


def test_a_recorder_that_never_closes_a_bag_refuses_the_start_that_waits_for_it(world):
    world.recorder("e1")
    assert world.start(call=2, episode_id="e2") == []
    for _ in range(10):
        world.seconds += 1
        assert world.recorder("e1", "finalizing") == world.tick() == []
    (answer,) = world.tick(1.0)
    message = "recorder_node is still writing the bag 'e1', after 10 s"
    assert answer == AnswerStart(2, StartError.NOT_READY, message, "e2")
    assert world.manager.episode is None


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda w: w.stop(), StartError.NOT_READY),
        (lambda w: w.safety(SafetyState.STOPPED, "NaN"), StartError.SAFETY_STOPPED),
    ],
)
def test_a_start_that_waits_can_be_given_up(world, end, error):
    world.recorder("e1")
    world.start(call=2, episode_id="e2")
    (answer,) = end(world)
    assert (answer.call, answer.error) == (2, error)
    assert world.recorder("e1", "idle") == []


def test_who_is_missing_is_named(world):
    world.start(episode_id="e1")
    assert world.tick(9.0) == []
    stopped, answer = world.tick(2.0)
    assert answer.error is StartError.NOT_READY
    assert "control_node" in answer.message
    assert "recorder_node" in answer.message
    assert (stopped.event, stopped.episode.termination) == (EventType.STOPPED, Termination.FAULT)
    world.start(episode_id="e2")
    world.control("e2")
    answer = world.tick(11.0)[1]
    assert "control_node" not in answer.message
    assert "recorder_node" in answer.message


def test_a_required_policy_is_waited_for(tmp_path):
    world = World(tmp_path, dataclasses.replace(HARDWARE, require_policy=True))
    world.start(episode_id="e1")
    world.recorder("e1"), world.control("e1")
    assert world.do(world.manager.on_policy("", "it is loading", world.now)) == []
    assert world.do(world.manager.on_policy("v1", "", world.now)) == [AnswerStart(1, StartError.OK, "", "e1")]
    world.stop()
    world.manager.on_policy("", "no checkpoint at /x", world.now)
    world.start(episode_id="e2")
    world.recorder("e2"), world.control("e2")
    answer = world.tick(11.0)[1]
    assert "policy_node is not ready (policy/status): no checkpoint at /x, after 10 s" in answer.message


def test_a_recorder_that_cannot_record_refuses_at_once_with_its_reason(world):
    world.start(episode_id="e1")
    answer = world.recorder("e1", "error", "only 0.1 GB free in /bags")[1]
    assert (answer.error, answer.message) == (StartError.NOT_READY, "recorder_node: only 0.1 GB free in /bags")


def test_without_a_recorder_when_none_is_required(tmp_path):
    world = World(tmp_path, dataclasses.replace(HARDWARE, require_recorder=False))
    world.start(episode_id="e1")
    assert world.control("e1") == [AnswerStart(1, StartError.OK, "", "e1")]


@pytest.mark.parametrize(("bad_request", "error"), [(True, StartError.BAD_REQUEST), (False, StartError.NOT_READY)])
def test_simulator_refusal_restores_the_last_episode(tmp_path, bad_request, error):
    world = World(tmp_path, SIMULATION)
    world.start(episode_id="e1", seed=0, task="nonsense")
    (answer,) = world.do(world.manager.on_reset("e1", "unknown task 'nonsense'", bad_request, "", 0.0, world.now))
    assert (answer.error, answer.message) == (error, "sim_node: unknown task 'nonsense'")
    assert world.manager.episode is None


def test_silent_simulator_is_named_and_its_late_answer_ignored(tmp_path):
    world = World(tmp_path, SIMULATION)
    world.start(episode_id="e1", seed=0)
    (answer,) = world.tick(11.0)
    assert "sim/reset" in answer.message
    assert world.do(world.manager.on_reset("e1", "", False, "", 8.0, world.now)) == []
    world.start(episode_id="e2", seed=0)
    assert world.do(world.manager.on_reset("e1", "", False, "", 8.0, world.now)) == []


def test_latched_safety_stop_refuses_a_start_and_ends_an_episode(world):
    world.safety(SafetyState.STOPPED, "tracking error")
    (answer,) = world.start(episode_id="e1")
    assert (answer.error, "tracking error" in answer.message) == (StartError.SAFETY_STOPPED, True)
    world.safety(SafetyState.OK)
    world.run("e2")
    world.safety(SafetyState.LIMITING, "velocity")
    assert world.manager.phase is Phase.RUNNING
    world.safety(SafetyState.STOPPED, "NaN")
    assert (world.stopped().episode.outcome, world.stopped().episode.termination) == (
        Outcome.UNLABELLED,
        Termination.SAFETY,
    )


def test_time_limit_on_hardware_is_ros_time(world):
    world.run("e1", time_limit_s=4.0)
    for _ in range(3):
        world.tick(1.0)
        world.control("e1", 50), world.recorder("e1")
    assert world.manager.phase is Phase.RUNNING
    world.tick(1.0)
    assert (world.stopped().episode.outcome, world.stopped().episode.termination) == (
        Outcome.TIMEOUT,
        Termination.TIME_LIMIT,
    )


@pytest.mark.parametrize(
    ("lose", "named"),
    [
        (lambda w: w.recorder("e1"), "control_node has not been in the episode for 5 s"),
        (lambda w: w.control("e1", 9), "recorder_node has been silent for 5 s"),
    ],
)
def test_a_silent_node_is_a_fault(world, lose, named):
    world.run()
    world.tick(4.0)
    assert world.manager.phase is Phase.RUNNING
    lose(world)
    world.tick(2.0)
    assert (world.stopped().message, world.stopped().episode.termination) == (named, Termination.FAULT)


def test_a_restarted_control_node_is_a_fault(world):
    world.run()
    world.control("e1", 7)
    world.control("", 0)
    assert world.manager.phase is Phase.RUNNING
    world.control("e1", 8)
    world.control("e1", 3)
    assert "control_node has restarted" in world.stopped().message


@pytest.fixture
def simulated(tmp_path) -> World:
    """A running episode e1 in simulation."""
    world = World(tmp_path, SIMULATION)
    world.start(episode_id="e1", seed=0)
    world.do(world.manager.on_reset("e1", "", False, "", 8.0, world.now))
    world.recorder("e1")
    world.control("e1")
    world.do(world.manager.on_run("e1", "", world.now))
    world.do(world.manager.on_task_state("e1", "t", Outcome.UNLABELLED, "", world.now))
    assert world.manager.phase is Phase.RUNNING
    return world


def test_a_silent_simulator_is_a_fault(simulated):
    simulated.tick(4.0)
    simulated.recorder("e1")
    simulated.control("e1", 200)  # control_node repeats its state although nothing moves
    simulated.tick(2.0)
    assert simulated.stopped().message == "sim_node has been silent for 5 s"
    assert simulated.stopped().episode.termination is Termination.FAULT


def test_a_restarted_simulator_is_a_fault(simulated):
    simulated.do(simulated.manager.on_task_state("", "t", Outcome.UNLABELLED, "", simulated.now))
    assert simulated.stopped().message == "sim_node has restarted"


def test_a_recorder_that_fails_ends_the_episode(world):
    world.run()
    world.recorder("e1", "error", "the disk is full")
    assert (world.stopped().episode.termination, "disk is full" in world.stopped().message) == (Termination.FAULT, True)


@pytest.mark.parametrize("phase", [Phase.RESETTING, Phase.STARTING, Phase.RUNNING])
def test_stop_works_in_every_phase_and_answers_a_pending_start(tmp_path, phase):
    world = World(tmp_path, SIMULATION if phase is Phase.RESETTING else HARDWARE)
    world.start(call=4, episode_id="e1", seed=0)
    if phase is Phase.RUNNING:
        world.recorder("e1"), world.control("e1")
    assert world.manager.phase is phase
    world.stop(Outcome.FAILURE)
    assert world.manager.phase is Phase.IDLE
    assert [e.call for e in world.effects if isinstance(e, AnswerStart)] == [4]
    assert world.stop() == []
    if phase is Phase.RUNNING:
        assert (world.stopped().episode.outcome, world.stopped().episode.termination) == (
            Outcome.FAILURE,
            Termination.OPERATOR,
        )


def test_labels_are_appended_and_the_newest_counts(world):
    world.run("e1")
    world.stop(Outcome.UNLABELLED)
    for outcome in (Outcome.FAILURE, Outcome.SUCCESS):
        episode_id, effects = world.manager.label("", outcome, 123, world.now)
        assert episode_id == "e1"
        assert (effects[0].event, effects[0].episode.outcome) == (EventType.LABELLED, outcome)
    labels = read_labels(world.store.bags / "e1")
    assert [(x.outcome, x.who, x.stamp_ns) for x in labels] == [
        (Outcome.FAILURE, "operator", 123),
        (Outcome.SUCCESS, "operator", 123),
    ]
    with pytest.raises(AloeError, match="no bag 'nobody'"):
        world.manager.label("nobody", Outcome.SUCCESS, 0, world.now)
    with pytest.raises(AloeError, match="not safe"):
        world.manager.label("../e1", Outcome.SUCCESS, 0, world.now)


def test_labelling_an_old_episode_does_not_unlatch_the_running_one(world):
    world.run("e1")
    world.stop()
    world.run("e2")
    assert world.manager.label("e1", Outcome.FAILURE, 0, world.now) == ("e1", [])
    assert len(read_labels(world.store.bags / "e1")) == 1


def test_discard_waits_for_the_recorder_and_moves_aside(world):
    world.run("e1")
    stopped = world.discard()
    assert [e.event for e in stopped] == [EventType.STOPPED]
    world.recorder("e1", "finalizing")
    assert (world.store.bags / "e1").is_dir()
    announced, answer = world.recorder("e1", "idle")
    assert (announced.event, announced.message) == (EventType.DISCARDED, "spilled")
    assert answer == AnswerDiscard(7, "e1", str(world.store.bags / "discarded" / "e1"), "spilled")
    assert not (world.store.bags / "e1").exists()
    assert (world.store.bags / "discarded" / "e1").is_dir()


def test_discard_does_not_wait_for_a_dead_recorder(world):
    world.run("e1")
    world.discard()
    world.tick(6.0)
    assert world.effects[-1].moved_to


def test_discard_gives_up_on_a_recorder_that_never_lets_go(world):
    world.run("e1")
    world.discard()
    for _ in range(11):
        world.seconds += 1
        world.recorder("e1", "finalizing")
    assert world.effects[-1] == AnswerDiscard(7, "e1", "", "recorder_node is still writing the bag 'e1'")
    assert (world.store.bags / "e1").is_dir()


def test_discarding_the_unknown_is_an_answer(world):
    assert "no episode yet" in world.discard()[0].message
    assert "no bag 'x'" in world.discard("x")[0].message
    assert "not safe" in world.discard("../x")[0].message


def test_nothing_in_discarded_is_overwritten(world):
    for content in ("first", "second"):
        (world.store.bags / "e1").mkdir()
        (world.store.bags / "e1" / "data").write_text(content)
        world.store.discard("e1")
    discarded = world.store.bags / "discarded"
    assert {p.name: (p / "data").read_text() for p in discarded.iterdir()} == {"e1": "first", "e1_2": "second"}


def test_restart_goes_on_with_the_running_episode(world):
    world.run("e1", time_limit_s=60.0)
    again = World(world.store.bags)
    assert again.manager.phase is Phase.RECOVERING
    assert again.start(episode_id="e2")[0].error is StartError.ALREADY_RUNNING
    again.recorder("e1")
    (announced,) = again.control("e1", 40)
    assert (announced.event, announced.episode) == (EventType.STARTED, world.manager.episode)
    again.stop(Outcome.SUCCESS)
    assert World(world.store.bags).manager.episode.outcome is Outcome.SUCCESS


@pytest.fixture
def restarted(tmp_path) -> World:
    """The manager of a simulated episode 'e1' after a restart in the middle of it."""
    world = World(tmp_path, SIMULATION)
    world.start(episode_id="e1", task="t", seed=0)
    world.do(world.manager.on_reset("e1", "", False, "", 8.0, world.now))
    world.recorder("e1")
    world.control("e1")
    world.do(world.manager.on_run("e1", "", world.now))
    assert world.manager.phase is Phase.RUNNING
    return World(tmp_path, SIMULATION)


def test_restart_waits_for_nodes_that_are_discovered_late(restarted):
    again = restarted
    for second in range(8):  # longer than the silence that would end a running episode
        again.seconds += 1
        assert again.control("e1", second) == again.recorder("e1") == again.tick() == []
    (announced,) = again.do(again.manager.on_task_state("e1", "t", Outcome.UNLABELLED, "", again.now))
    assert announced.event is EventType.STARTED
    assert again.tick(4.0) == []
    again.do(again.manager.on_task_state("e1", "t", Outcome.TIMEOUT, "", again.now))
    assert again.stopped().episode.termination is Termination.TIME_LIMIT


def test_restart_finds_that_others_have_restarted_too(restarted):
    (stopped,) = restarted.do(restarted.manager.on_task_state("", "t", Outcome.UNLABELLED, "", restarted.now))
    assert (stopped.event, stopped.message) == (EventType.STOPPED, "sim_node has restarted")


def test_restart_without_a_recording_does_not_go_on(restarted):
    (stopped,) = restarted.recorder("", "idle")
    assert stopped.episode.termination is Termination.FAULT
    assert "recorder_node does not record" in stopped.message


def test_restart_without_control_ends_the_episode_and_moves_nothing(world):
    world.run("e1")
    again = World(world.store.bags)
    assert again.tick(9.0) == []
    again.control("")
    (stopped,) = again.tick(2.0)
    assert (stopped.event, stopped.episode.termination) == (EventType.STOPPED, Termination.FAULT)
    assert "control_node, recorder_node" in stopped.message
    assert World(world.store.bags).manager.phase is Phase.IDLE


def test_a_foreign_state_file_is_named(world):
    (world.store.bags / "episode_state.json").write_text("[]")
    with pytest.raises(AloeError, match=r"episode_state\.json"):
        World(world.store.bags)


def test_new_names_are_never_taken(world):
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    names = []
    for _ in range(3):
        names.append(world.store.new_id("pour", now))
        (world.store.bags / names[-1]).mkdir()
    assert names == ["20260102T030405_pour", "20260102T030405_pour_2", "20260102T030405_pour_3"]


@given(name=st.text(max_size=20))
def test_accepted_names_stay_in_their_folder(tmp_path_factory, name):
    base = tmp_path_factory.getbasetemp() / "bags"
    try:
        check_name(name, "episode id")
    except AloeError:
        return
    path = (base / name).resolve()
    assert path.parent == base.resolve()
    assert not name.startswith(".")


@given(
    st.lists(
        st.sampled_from(
            [
                "start",
                "reset",
                "run",
                "control",
                "idle",
                "recorder",
                "busy",
                "broken",
                "task",
                "safety",
                "stop",
                "tick",
                "wait",
            ]
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_any_order_of_happenings_keeps_the_machine_whole(tmp_path_factory, happenings, simulator):
    """Only allowed transitions (asserted inside); every start is answered once; STARTED and STOPPED alternate."""
    world = World(tmp_path_factory.mktemp("bags"), dataclasses.replace(HARDWARE, simulator=simulator))
    calls, current = 0, ""
    for number, what in enumerate(happenings):
        if what == "start":
            calls += 1
            if world.manager.phase is Phase.IDLE:
                current = f"e{number}"
            world.start(call=calls, episode_id=f"e{number}", seed=0)
        elif what == "reset":
            world.do(world.manager.on_reset(current, "", False, "", 8.0, world.now))
        elif what == "run":
            world.do(world.manager.on_run(current, "", world.now))
        elif what in ("control", "idle"):
            world.control(current if what == "control" else "", number)
        elif what in ("recorder", "broken"):
            world.recorder(current, "recording" if what == "recorder" else "error", "no")
        elif what == "task":
            world.do(world.manager.on_task_state(current, "t", Outcome.FAILURE, "", world.now))
        elif what == "safety":
            world.safety(SafetyState.STOPPED, "x"), world.safety(SafetyState.OK)
        elif what == "stop":
            world.stop()
        elif what == "busy":
            world.recorder("e0", "finalizing")
        else:
            world.tick(0.1 if what == "tick" else 6.0)
    world.stop()
    assert world.manager.phase is Phase.IDLE
    answered = [e.call for e in world.effects if isinstance(e, AnswerStart)]
    assert sorted(answered) == list(range(1, calls + 1))
    events = [e.event for e in world.effects if isinstance(e, Announce)]
    assert events == [EventType.STARTED, EventType.STOPPED] * (len(events) // 2)


def test_every_phase_can_be_left():
    assert set(ALLOWED) == set(Phase)
    assert all(Phase.IDLE in targets for phase, targets in ALLOWED.items() if phase is not Phase.IDLE)


@pytest.mark.parametrize("name", ["ready_timeout_s", "fault_timeout_s"])
def test_configuration_errors_name_the_parameter(name):
    with pytest.raises(AloeError, match=name.removesuffix("_s")):
        dataclasses.replace(HARDWARE, **{name: 0.0})
