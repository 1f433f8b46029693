"""Labels given after an episode: one JSON line each in `labels.jsonl` beside the bag. The newest line counts; the bag itself is never rewritten."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from aloe_core.errors import AloeError
from aloe_core.vocabulary import Outcome, outcome_from_text

LABELS_FILE = "labels.jsonl"


@dataclass(frozen=True, slots=True)
class Label:
    """One judgement of an episode.

    Attributes:
        outcome: how the episode ended.
        stamp_ns: when it was given [ns since 1970].
        who: a person or program; free text.
        message: one sentence; may be empty.
    """

    outcome: Outcome
    stamp_ns: int
    who: str = ""
    message: str = ""


def append_label(folder: Path, label: Label) -> None:
    """Adds a label to the bag in `folder`.

    Raises:
        AloeError: the folder does not exist or is not writable.
    """
    line = json.dumps(
        {"outcome": label.outcome.name.lower(), "stamp_ns": label.stamp_ns, "who": label.who, "message": label.message}
    )
    try:
        fd = os.open(folder / LABELS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, line.encode() + b"\n")  # one write, so that two writers never mix their lines
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise AloeError(f"cannot label the bag {folder}: {error.strerror}") from None


def read_labels(folder: Path) -> list[Label]:
    """All labels of a bag, oldest first; none is no error.

    Raises:
        AloeError: a line is not a label; the message names file and line.
    """
    file = folder / LABELS_FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise AloeError(f"{file}: not readable: {error}") from None
    labels = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            labels.append(
                Label(
                    outcome_from_text(str(data["outcome"])),
                    int(data.get("stamp_ns", 0)),
                    str(data.get("who", "")),
                    str(data.get("message", "")),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise AloeError(f"{file}:{number}: not a label ({error}); expected a JSON object with 'outcome'") from None
    return labels
