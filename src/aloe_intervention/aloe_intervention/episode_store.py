"""The bags folder as `episode_node` uses it: safe names, labels, discarded bags, and the episode under way across a restart."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from aloe_core.bag_format import replace_file
from aloe_core.bag_labels import Label, append_label
from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, Termination

SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
DISCARDED = "discarded"
STATE_FILE = "episode_state.json"


def check_name(name: str, what: str) -> str:
    """`name` itself when it is safe as a folder name.

    Raises:
        AloeError: it could leave the folder, hide in it, or is longer than 128 characters.
    """
    if not SAFE_NAME.fullmatch(name) or name == DISCARDED:
        raise AloeError(
            f"{what} {name[:160]!r} is not safe as a folder name: use letters, digits, '_', '-' and '.', not '.' first, at most 128"
            f" characters, not '{DISCARDED}'"
        )
    return name


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode as its events describe it.

    Attributes:
        seed: seed of the simulator's reset; -1: none.
        time_limit_s: [s]; 0: none.
        started_ns: ROS time of STARTED [ns].
        policy_version: at the start of the episode.
        running: between STARTED and STOPPED.
        message: why it ended, one sentence; empty while running.
    """

    episode_id: str
    task: str = ""
    instruction: str = ""
    seed: int = -1
    time_limit_s: float = 0.0
    policy_version: str = ""
    started_ns: int = 0
    running: bool = True
    outcome: Outcome = Outcome.UNLABELLED
    termination: Termination = Termination.NONE
    message: str = ""


class EpisodeStore:
    """Files in one bags folder, which is made when missing. Nothing in it is ever deleted or overwritten, but for the state file."""

    def __init__(self, bags: Path | str) -> None:
        self.bags = Path(bags).expanduser()
        try:
            self.bags.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AloeError(f"cannot make the bags folder {self.bags}: {error.strerror}") from None

    def folder(self, episode_id: str) -> Path:
        """Where the bag of an episode lies, or would lie."""
        return self.bags / check_name(episode_id, "episode id")

    def has(self, episode_id: str) -> bool:
        """Whether there is a bag of that name."""
        return self.folder(episode_id).is_dir()

    def taken(self, episode_id: str) -> bool:
        """Whether the name was used before, by a bag or a discarded one."""
        return self.folder(episode_id).exists() or (self.bags / DISCARDED / episode_id).exists()

    def new_id(self, task: str, now: datetime | None = None) -> str:
        """A name nobody has used: UTC date and time, task, and a number where that is not enough."""
        stem = f"{now or datetime.now(timezone.utc):%Y%m%dT%H%M%S}_{check_name(task or 'episode', 'task')}"
        name, number = stem, 1
        while self.taken(name):
            number += 1
            name = f"{stem}_{number}"
        return name

    def label(self, episode_id: str, label: Label) -> None:
        """Appends a label to the bag; the newest counts.

        Raises:
            AloeError: there is no such bag, or it cannot be written.
        """
        if not self.has(episode_id):
            raise AloeError(f"there is no bag '{episode_id}' in {self.bags}")
        append_label(self.folder(episode_id), label)

    def discard(self, episode_id: str) -> Path:
        """Moves a bag to `discarded/`, beside any earlier one of that name; returns its new folder.

        Raises:
            AloeError: there is no such bag, or it cannot be moved.
        """
        if not self.has(episode_id):
            raise AloeError(f"there is no bag '{episode_id}' in {self.bags}")
        target, number = self.bags / DISCARDED / episode_id, 1
        while target.exists():
            number += 1
            target = target.with_name(f"{episode_id}_{number}")
        try:
            target.parent.mkdir(exist_ok=True)
            self.folder(episode_id).rename(target)
        except OSError as error:
            raise AloeError(f"cannot move the bag '{episode_id}' to {target}: {error.strerror}") from None
        return target

    def save(self, episode: Episode) -> None:
        """Remembers the episode under way, or the last one, across a restart."""
        text = json.dumps(
            asdict(episode) | {"outcome": episode.outcome.name, "termination": episode.termination.name}, indent=1
        )
        try:
            replace_file(self.bags / STATE_FILE, text + "\n")
        except OSError as error:
            raise AloeError(f"cannot write {self.bags / STATE_FILE}: {error.strerror}") from None

    def load(self) -> Episode | None:
        """The episode last saved, or None.

        Raises:
            AloeError: the state file is not one of ours.
        """
        path = self.bags / STATE_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(Episode)}
            values = {k: v for k, v in data.items() if k in known}
            values["outcome"], values["termination"] = Outcome[data["outcome"]], Termination[data["termination"]]
            episode = Episode(**values)
            check_name(episode.episode_id, "episode id")
            return episode
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AloeError(f"{path}: not a state of an episode ({error!r}); move it away") from None
