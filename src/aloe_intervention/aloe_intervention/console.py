"""What an operator sees in the terminal, and what the keys do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from aloe_core.vocabulary import EventType, Mode, Outcome, SafetyState, Termination

EMERGENCY = " "
KEYS = {
    "s": ("start", "start"),
    "x": ("stop", "stop"),
    "y": ("success", "success"),
    "n": ("failure", "failure"),
    "d": ("discard", "discard (twice)"),
    "r": ("reset_safety", "reset safety"),
    EMERGENCY: ("emergency_stop", "EMERGENCY STOP"),
    "q": ("quit", "quit"),
}
ESCAPE = re.compile(
    r"\x1b(\[[0-?]*[@-~]|O[@-~])?"
)  # what a terminal sends for keys without a letter, such as the arrows
CONFIRM_TIME = 3.0  # [s] between the two strokes of a key that must be sure
RECORDER_STATES = ("idle", "recording", "finalizing", "error")
MODE_STYLES = {Mode.HUMAN: "bold dark_orange", Mode.POLICY: "bold blue", Mode.STOPPED: "bold white on red"}
GOOD, BAD, DIM = "green", "bold red", "bright_black"


@dataclass(slots=True)
class Console:
    """Newest facts from the graph, as attributes of the messages' names, and the keyboard's memory.

    Attributes:
        rate_hz: control rate of the robot [Hz].
        stale_after: silence after which the control loop counts as gone [s].
    """

    rate_hz: float = 50.0
    stale_after: float = 1.0
    episode: Any = None  # EpisodeEvent
    control: Any = None  # ControlState
    control_at: float = 0.0  # wall time of its arrival [s]
    safety: Any = None  # SafetyStatus
    recorder: Any = None  # RecorderStatus
    policy: Any = None  # PolicyStatus
    task: Any = None  # TaskState
    teleop: dict[str, Any] = field(default_factory=dict)  # arm -> TeleopCommand
    answer: str = ""
    answer_good: bool = True
    _asked: tuple[str, float] = ("", 0.0)

    def press(self, key: str, now: float) -> str:
        """The action of a key at wall time `now` [s]; empty: none, or not sure yet."""
        if not key:
            return ""
        action, _ = KEYS.get(key.lower(), ("", ""))
        if action == "discard":
            asked, at = self._asked
            if asked != action or now - at > CONFIRM_TIME:
                self._asked = (action, now)
                self.tell("press d again to discard this episode", True)
                return ""
        self._asked = ("", 0.0)
        return action

    def tell(self, text: str, good: bool) -> None:
        """Shows what was answered."""
        self.answer, self.answer_good = text, good

    def render(self, now: float) -> Group:
        """The screen at wall time `now` [s]."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style=DIM, justify="right")
        table.add_column(overflow="fold")
        for label, text in self._rows(now):
            table.add_row(label, text)
        keys = Text()
        for key, (_, label) in KEYS.items():
            keys.append(f" {'space' if key == EMERGENCY else key} ", "reverse")
            keys.append(f" {label}  ")
        return Group(table, Text(self.answer, GOOD if self.answer_good else BAD), keys)

    def _rows(self, now: float) -> list[tuple[str, Text]]:
        rows = [("episode", self._episode())]
        if self.control is None or now - self.control_at > self.stale_after:
            silent = "nothing from control_node" + (
                "" if self.control is None else f" for {now - self.control_at:.0f} s"
            )
            rows.append(("arms", Text(silent, BAD)))
        else:
            rows += [("arms", self._arms()), ("policy", self._policy())]
        rows += [("safety", self._safety()), ("recorder", self._recorder())]
        task = self.task
        if task is not None:
            rows.append(("task", Text(f"{task.task} {task.progress:.0%}")))
        return rows

    def _episode(self) -> Text:
        e = self.episode
        if e is None:
            return Text("none yet", DIM)
        name = f"{e.episode_id}  {e.task}"
        if e.event == EventType.STARTED:
            seconds = 0.0 if self.control is None else self.control.step / self.rate_hz
            limit = f" of {e.time_limit:.0f} s" if e.time_limit else " s"
            return Text.assemble(name, ("  running ", "bold"), f"{seconds:.1f}{limit}")
        if e.event == EventType.DISCARDED:
            return Text.assemble(name, ("  discarded", DIM))
        outcome = Outcome(e.outcome)
        style = {Outcome.SUCCESS: GOOD, Outcome.FAILURE: BAD}.get(outcome, "bold")
        why = Termination(e.termination_reason).name.lower().replace("_", " ")
        return Text.assemble(name, "  ", (outcome.name.lower(), style), f" ({why})", f"  {e.message}")

    def _arms(self) -> Text:
        control = self.control
        text = Text()
        for arm, value in zip(control.arm_names, control.mode, strict=True):
            mode = Mode(value)
            text.append(f"{arm} ")
            text.append(mode.name, MODE_STYLES.get(mode, "bold"))
            teleop = self.teleop.get(arm)
            if teleop is not None and teleop.engaged and not teleop.healthy:
                text.append(f" {teleop.message}", BAD)
            text.append("   ")
        if control.intervention_id:
            text.append(f"intervention {control.intervention_id}")
        return text

    def _policy(self) -> Text:
        control = self.control
        version = control.policy_version or ("" if self.policy is None else self.policy.version) or "none"
        text = Text(f"{version}, {control.remaining_steps} steps left")
        if control.starved_ticks:
            text.append(f", {control.starved_ticks} starved", BAD)
        if control.discard_reason:
            text.append(f", {control.discarded_chunks} refused: {control.discard_reason}", DIM)
        return text

    def _safety(self) -> Text:
        if self.safety is None:
            return Text("unknown", DIM)
        safety = self.safety
        state = SafetyState(safety.state)
        style = {SafetyState.OK: GOOD, SafetyState.LIMITING: "yellow", SafetyState.STOPPED: BAD}[state]
        return Text.assemble((state.name, style), f"  {safety.message}")

    def _recorder(self) -> Text:
        if self.recorder is None:
            return Text("nothing records", DIM)
        r = self.recorder
        text = Text(
            f"{RECORDER_STATES[r.state]}, {r.messages} messages, {r.bytes / 1e6:.1f} MB, {r.free_bytes / 1e9:.0f} GB free"
        )
        if r.dropped:
            text.append(f", {r.dropped} lost", BAD)
        if r.message:
            text.append(f"  {r.message}", BAD if r.state == len(RECORDER_STATES) - 1 else DIM)
        return text


def run_console(
    console: Console,
    read_keys: Callable[[], str],
    do: Callable[[str], None],
    refresh: Callable[[], None],
    clock: Callable[[], float],
) -> None:
    """Until `q`: each key to its action, an emergency stop before all others, one refresh after the other.

    Args:
        read_keys: all keys that wait, in order; empty: none.
        do: carries out an action.
        refresh: waits a moment for news and shows them.
        clock: wall time [s].
    """
    while True:
        keys = read_keys()
        if EMERGENCY in keys:
            do(console.press(EMERGENCY, clock()))
        for key in ESCAPE.sub("", keys).replace(EMERGENCY, ""):
            action = console.press(key, clock())
            if action == "quit":
                return
            if action:
                do(action)
        refresh()
