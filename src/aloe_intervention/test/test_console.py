"""The operator's terminal: what it shows, what its keys do, and that it works in a real terminal."""

import os
import pty
import select
import sys
import time
from types import SimpleNamespace as Message

import pytest
from rich.console import Console as Screen

from aloe_core.vocabulary import EventType, Mode, Outcome, SafetyState, Termination
from aloe_intervention.console import KEYS, Console, run_console


def shown(console: Console, now: float = 0.0) -> str:
    screen = Screen(width=120)
    with screen.capture() as capture:
        screen.print(console.render(now))
    return capture.get()


def running(**change) -> Console:
    console = Console(rate_hz=50.0)
    event = {"event": EventType.STARTED, "episode_id": "e1", "task": "transfer_cube", "time_limit": 30.0}
    console.episode = Message(**event)
    state = {
        "arm_names": ["left", "right"],
        "mode": [Mode.POLICY, Mode.HUMAN],
        "intervention_id": 2,
        "step": 220,
        "policy_version": "bc-0",
        "remaining_steps": 30,
        "starved_ticks": 0,
        "discard_reason": "",
        "discarded_chunks": 0,
    }
    console.control = Message(**(state | change))
    return console


def test_before_anything_has_come():
    text = shown(Console())
    assert "none yet" in text
    assert "nothing from control_node" in text
    assert "nothing records" in text


def test_a_running_episode():
    text = shown(running())
    for words in (
        "e1  transfer_cube  running 4.4 of 30 s",
        "left POLICY",
        "right HUMAN",
        "intervention 2",
        "bc-0, 30 steps left",
    ):
        assert words in text


def test_what_is_wrong_is_said():
    console = running(starved_ticks=7, discard_reason="older than the running one", discarded_chunks=1)
    console.teleop["right"] = Message(engaged=True, healthy=False, message="nothing from the SpaceMouse for 0.4 s")
    console.safety = Message(state=SafetyState.STOPPED, message="emergency stop by service")
    console.recorder = Message(state=3, messages=10, bytes=2e6, free_bytes=1e9, dropped=4, message="the disk is full")
    text = shown(console)
    for words in (
        "nothing from the SpaceMouse",
        "7 starved",
        "1 refused: older",
        "STOPPED",
        "emergency stop by service",
    ):
        assert words in text
    for words in ("error, 10 messages, 2.0 MB, 1 GB free, 4 lost  the disk is full",):
        assert words in text


def test_a_control_loop_that_went_silent_is_not_shown_as_alive():
    console = running()
    console.control_at = 10.0
    assert "left POLICY" in shown(console, 10.9)
    assert "nothing from control_node for 3 s" in shown(console, 13.0)
    assert "left POLICY" not in shown(console, 13.0)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_ended_episode_says_how_and_why(outcome):
    console = running()
    console.episode = Message(
        event=EventType.STOPPED,
        episode_id="e1",
        task="t",
        outcome=outcome,
        termination_reason=Termination.TIME_LIMIT,
        message="over",
    )
    assert f"{outcome.name.lower()} (time limit)  over" in shown(console)


def test_keys():
    console = Console()
    assert [console.press(k, 0.0) for k in "sxyYnr q"] == [
        "start",
        "stop",
        "success",
        "success",
        "failure",
        "reset_safety",
        "emergency_stop",
        "quit",
    ]
    assert console.press("?", 0.0) == ""
    assert console.press("", 0.0) == ""


def test_discarding_takes_two_strokes_in_a_row():
    console = Console()
    assert console.press("d", 1.0) == ""
    assert "press d again" in shown(console)
    assert console.press("", 1.5) == "", "no key in between changes nothing"
    assert console.press("d", 2.0) == "discard"
    assert console.press("d", 2.1) == "", "each discard is asked for anew"
    assert console.press("x", 2.2) == "stop"
    assert console.press("d", 2.3) == ""
    assert console.press("d", 9.0) == "", "too late"


def test_the_loop_does_what_the_keys_say_and_ends_with_q():
    keys, done, looks = iter(["", "s", "", "d", "d", "?", "q"]), [], []
    run_console(Console(), lambda: next(keys), done.append, lambda: looks.append(1), lambda: 0.0)
    assert done == ["start", "discard"]
    assert len(looks) == 6


@pytest.mark.parametrize(
    ("keys", "done"),
    [
        ("x q", ["emergency_stop", "stop"]),
        ("q ", ["emergency_stop"]),
        ("syq", ["start", "success"]),
        ("\x1b[D\x1b[D\x1bOS\x1b[15~q", []),  # left, left, F4, F5: none of them is a d or an s
        ("\x1b \x1bq", ["emergency_stop"]),
    ],
)
def test_keys_that_come_together_all_count_and_the_emergency_stop_goes_first(keys, done):
    found: list[str] = []
    once = iter([keys])
    run_console(Console(), lambda: next(once), found.append, lambda: None, lambda: 0.0)
    assert found == done


def test_the_task_of_a_simulator_is_shown():
    messages = pytest.importorskip("aloe_msgs.msg", reason="needs ROS 2")
    console = running()
    console.task = messages.TaskState(task="transfer_cube", progress=0.25)
    assert "transfer_cube 25%" in shown(console)


def test_every_key_is_on_the_screen():
    text = shown(Console())
    for label in (label for _, label in KEYS.values()):
        assert label in text


def test_in_a_real_terminal(ros_domain):
    """A pseudo-terminal: the screen comes, an action nobody answers is said so, keys typed together all arrive, `q` ends it and restores the terminal."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from intervention_peer import Peer
    from std_srvs.srv import Trigger

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        os.execv(sys.executable, [sys.executable, "-m", "aloe_core.cli", "operate", "--refresh", "0.05"])
    seen, peer = b"", None

    def read_until(words: bytes, timeout: float = 40.0) -> None:
        nonlocal seen
        end = time.monotonic() + timeout
        while words not in seen:
            assert time.monotonic() < end, f"{words!r} never came: {seen[-2000:]!r}"
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)

    def look(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                os.read(terminal, 65536)

    try:
        read_until(b"EMERGENCY STOP")
        os.write(terminal, b"s")
        read_until(b"nobody answers on service 'episode/start'")
        peer, stops = Peer(), []

        def stop(request, response):
            stops.append(request)
            response.success, response.message = True, "held"
            return response

        peer.node.create_service(Trigger, "control/emergency_stop", stop)
        while not stops:
            os.write(terminal, b" ")
            look(0.5)
        while heard := len(stops):
            look(1.0)
            if len(stops) == heard:
                break
        os.write(terminal, b"xx ")
        end = time.monotonic() + 20.0
        while len(stops) == heard:
            assert time.monotonic() < end, "the last of three keys was never seen"
            look(0.2)
        os.write(terminal, b"q")
        end = time.monotonic() + 20.0
        status = None
        while status is None and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:  # the other end is closed
                    pass
            done, code = os.waitpid(pid, os.WNOHANG)
            status = code if done else None
        assert status == 0
    finally:
        if peer is not None:
            peer.close()
        try:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(terminal)


def test_without_a_terminal_it_says_so(start_process):
    command = [sys.executable, "-m", "aloe_core.cli", "operate"]
    process = start_process(["/bin/sh", "-c", f"{' '.join(command)} < /dev/null"])
    assert process.wait(40.0) == 1
    assert "operate needs a terminal" in process.output
