"""Reads thousands of wrong inputs in a process with limits: `fuzz.py --inputs 10000 [reader ...]` prints one line of JSON per reader.

Each input is derived from a valid one by a generator seeded with (reader, number), so that a number is all it takes to see a failure again:
`fuzz.py --only NUMBER reader`. An input may be refused with an `AloeError` or accepted; anything else is a failure: another exception, more than
`CPU_SECONDS` of computing, memory beyond `MEMORY`, a write outside the folder of the test, a process or connection started, a pickle.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloe_core.errors import AloeError

CPU_SECONDS = 5.0  # for one input
MEMORY = 2 * 2**30  # bytes of address space beyond what the imports take
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
    "pickle.",
)
SHOWN = 20  # failures a report names

Change = Callable[[random.Random, bytes], bytes]


@dataclass
class Reader:
    """Something that reads files or frames of others.

    Attributes:
        samples: valid inputs.
        read: reads one input, raises `AloeError` if it refuses it.
        change: makes a wrong input of a valid one.
    """

    samples: list[bytes]
    read: Callable[[bytes], object]
    change: Change


class Hang(BaseException):
    """The time for one input is over. Not an Exception, for nobody may catch it."""


class Escape(BaseException):
    """An input made the process do what no file may make it do."""


@dataclass
class Report:
    """What came of the inputs for one reader."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    grown_mb: float = 0.0  # of resident memory, from the first input to the largest
    failures: list[str] = field(default_factory=list)


# -- wrong inputs --


def garble(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes overwritten, cut, repeated, inserted, or a number made huge."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not content:
            break
        at = rng.randrange(len(content))
        match rng.randrange(8):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del content[at:]
            case 3:
                del content[at : at + rng.randrange(1, 64)]
            case 4:
                start = rng.randrange(len(content))
                content[at:at] = content[start : start + rng.randrange(1, 256)]
            case 5:
                content[at:at] = rng.randbytes(rng.randrange(1, 16))
            case 6:
                size = rng.choice((2, 4, 8))
                content[at : at + size] = rng.choice(
                    (b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"\xff" * (size - 1) + b"\x7f")
                )
            case 7:
                start = rng.randrange(len(content))
                piece = content[start : start + rng.randrange(1, 64)]
                content[at : at + len(piece)] = piece
    return bytes(content)


BOMB = "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], &d [*c,*c,*c,*c,*c,*c,*c,*c,*c],"
BOMB += " &e [*d,*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e,*e], &g [*f,*f,*f,*f,*f,*f,*f,*f,*f], [*g,*g,*g,*g,*g,*g,*g,*g,*g]]"
TEXTS = (
    *(
        "null",
        "~",
        "true",
        "[]",
        "{}",
        "''",
        "0",
        "-1",
        "1e400",
        "-.inf",
        ".nan",
        "NaN",
        "1_000",
        "0x7fffffffffffffff",
        "9" * 400,
    ),
    *(
        "2020-13-45",
        "2020-01-01",
        "!!binary aGk=",
        "!!set {a}",
        "!!python/object/apply:os.system ['true']",
        "&a [*a]",
        "*b",
        BOMB,
    ),
    *(
        "[" * 2000,
        "{a: " * 500,
        "? [a]\n: b",
        "\x00",
        "\ufeff",
        "%TAG ! x",
        "---",
        "...",
        "|",
        ">",
        "$(command 'true')",
        "$(var x)",
    ),
    *(
        "$(eval 1)",
        "$(",
        "../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "a" * 5000,
        "\u202e\U0001f40c",
        "@",
        "`",
        "- - - -",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "../x", "/", "a b", "\x00", "é" * 300, "x" * 10_000, [], [[]], [1, "a", None], {}, {"x": 1}, [0] * 1000),
)


def garble_text(rng: random.Random, data: bytes) -> bytes:
    """`garble`, or a line, word or value replaced by what is special to YAML and JSON."""
    if rng.random() < 0.3:
        return garble(rng, data)
    text = data.decode(errors="replace")
    for _ in range(rng.choice((1, 1, 2, 3))):
        special = rng.choice(TEXTS)
        lines = text.split("\n")
        row = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines[row] = special
            case 1:
                lines[row] = lines[row].split(":")[0] + ": " + special
            case 2:
                lines.insert(row, lines[rng.randrange(len(lines))])
            case 3:
                lines[row] = " " * rng.randrange(8) + lines[row].lstrip()
            case 4:
                at = rng.randrange(len(lines[row]) + 1)
                lines[row] = lines[row][:at] + special + lines[row][at:]
        text = "\n".join(lines)
    return text.encode()


def change_tree(rng: random.Random, tree: Any) -> Any:
    """A copy with a value replaced, left out, doubled or moved somewhere."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in tree.items() if k != key}
            case 1:
                return {**tree, rng.choice(("unknown", "", key, 1, b"x")): rng.choice(VALUES)}
            case 2:
                return {**tree, key: tree[rng.choice(list(tree))]}
        return {**tree, key: change_tree(rng, tree[key])}
    if isinstance(tree, (list, tuple)) and tree and rng.random() < 0.9:
        at = rng.randrange(len(tree))
        match rng.randrange(6):
            case 0:
                return [*tree[:at], *tree[at + 1 :]]
            case 1:
                return [*tree[:at], tree[at], *tree[at:]]
        return [*tree[:at], change_tree(rng, tree[at]), *tree[at + 1 :]]
    if isinstance(tree, (int, float)) and not isinstance(tree, bool) and rng.random() < 0.4:
        return rng.choice((-tree, tree + 1, tree * 1000, tree / 3, float(tree), str(tree)))
    return rng.choice(VALUES)


def tree_of(load: Callable[[bytes], Any], dump: Callable[[Any], bytes], other: Change = garble_text) -> Change:
    """Half of the inputs are changed as what they mean, the others as bytes."""

    def change(rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.5:
            return other(rng, data)
        tree = load(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            tree = change_tree(rng, tree)
        return dump(tree)

    return change


# -- reading them --


def _watch(folder: Path) -> None:
    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN):
            raise Escape(f"{event} {arguments}"[:200])
        if (
            event == "open"
            and isinstance(arguments[0], (str, bytes))
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith((str(folder), "/dev/null")):
                raise Escape(f"opens {path} for writing")

    sys.addaudithook(hook)


def _out_of_time(number: int, frame: object) -> None:
    raise Hang(f"more than {CPU_SECONDS:g} s")


def fuzz(name: str, reader: Reader, numbers: range) -> Report:
    """Gives the reader the inputs of these numbers."""
    report, began = Report(name), time.process_time()
    for sample in reader.samples:
        reader.read(sample)  # else the inputs would be refused for the wrong reason
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        rng = random.Random(f"{name}/{number}")
        data = reader.change(rng, rng.choice(reader.samples))
        report.inputs += 1
        start = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            reader.read(data)
            report.accepted += 1
        except AloeError as error:
            report.refused += 1
            if not str(error) or len(str(error)) > 20_000:
                report.failures.append(f"{number}: a refusal of {len(str(error))} characters")
        except BaseException as error:  # whatever it is, it is what is looked for
            where = traceback.extract_tb(error.__traceback__)
            own = next((f for f in reversed(where) if "aloe_" in f.filename and "/test/" not in f.filename), where[-1])
            place = f"{Path(own.filename).name}:{own.lineno}"
            report.failures.append(f"{number}: {type(error).__name__} at {place}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        report.slowest_s = max(report.slowest_s, round(time.process_time() - start, 3))
    report.seconds = round(time.process_time() - began, 1)
    report.grown_mb = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 1024, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--only", type=int)
    parser.add_argument("readers", nargs="*")
    arguments = parser.parse_args()
    from fuzz_readers import READERS

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="aloe_fuzz_") as scratch:
        folder = Path(scratch)
        chosen = arguments.readers or list(READERS)
        readers = {name: READERS[name](folder / name) for name in chosen}
        signal.signal(signal.SIGPROF, _out_of_time)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        _watch(folder)
        numbers = range(arguments.inputs) if arguments.only is None else range(arguments.only, arguments.only + 1)
        failed = False
        for name, reader in readers.items():
            print(f"reading {name}", file=sys.stderr, flush=True)
            report = fuzz(name, reader, numbers)
            failed |= bool(report.failures)
            counted = {**vars(report), "failures": report.failures[:SHOWN], "failed": len(report.failures)}
            print(json.dumps(counted), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
