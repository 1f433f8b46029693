"""Whatever files and frames of others contain, a reader takes it or refuses it in a sentence: a sample of what `make fuzz` does with ten thousand each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import FORBIDDEN, Escape, Hang, Reader, change_tree, fuzz, garble, garble_text
from fuzz_readers import READERS

from aloe_core.errors import AloeError

INPUTS = os.environ.get("ALOE_FUZZ", "40")


@pytest.fixture(scope="module")
def reports():
    """What a process with limits says of each reader."""
    program = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(program), "--inputs", INPUTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {report["reader"]: report for report in found}, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_it_or_refuses_it(reports, name):
    found, said = reports
    assert name in found, f"the process ended before or in it: {said[-2000:]}"
    report = found[name]
    assert report["failures"] == []
    assert report["accepted"] + report["refused"] == report["inputs"] == int(INPUTS)
    assert report["accepted"] < report["inputs"]
    assert report["grown_mb"] < 500


def test_what_is_not_a_refusal_is_found():
    def read(data: bytes) -> None:
        for number, error in enumerate((AloeError("no"), ValueError("x"), Hang("x"), Escape("x"), MemoryError())):
            if data[0] % 6 == number:
                raise error

    report = fuzz("bad", Reader([b"\x05"], read, lambda rng, data: rng.randbytes(1)), range(300))
    assert report.inputs == 300 == report.accepted + report.refused + len(report.failures)
    kinds = {failure.split()[1] for failure in report.failures}
    assert kinds == {"ValueError", "Hang", "Escape", "MemoryError"}


def test_the_same_number_is_the_same_input():
    seen: list[list[bytes]] = [[], []]
    for inputs in seen:
        for change in (garble, garble_text):
            fuzz("same", Reader([b"a: 1\nb: [2, 3]\n" * 5], inputs.append, change), range(50))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 90


def test_trees_are_changed_everywhere():
    import random

    tree = {"a": [1, 2.5, {"b": "c"}], "d": None}
    texts = {repr(change_tree(random.Random(k), tree)) for k in range(2000)}
    assert len(texts) > 200
    assert tree == {"a": [1, 2.5, {"b": "c"}], "d": None}, "the valid one stays valid"
    assert all(isinstance(event, str) for event in FORBIDDEN)
