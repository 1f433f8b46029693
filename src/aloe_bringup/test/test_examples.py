"""Every script in examples/ runs and prints what it promises."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PROMISED = {
    "01_read_a_bag.py": r"ended in SUCCESS\n(.*\n)+problems: none",
    "02_roll_out_a_policy.py": r"success 3/3",
    "03_custom_policy.py": r"200 ticks, TIMEOUT.*\nleft_wrist_rotate went from -0\.[34]\d to 0\.[34]\d rad",
    "04_fragments.py": r"aloe\n(.*\n)+hil_serl\n(.*\n)+hg_dagger\n(.*\n)+.*\[0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0\]",
    "05_critic_targets.py": r"(back-up over .* error \d\.\de-1\d\n){4}without the terminal mask: largest error [1-9]\d+",
}


def test_every_example_is_tried():
    assert sorted(file.name for file in EXAMPLES.glob("*.py")) == sorted(PROMISED)


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_example(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert re.search(PROMISED[name], capsys.readouterr().out)
