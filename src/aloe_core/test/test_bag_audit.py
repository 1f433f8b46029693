"""`aloe bags`: what verification finds, and what the commands print."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_fragments import EPISODE

from aloe_core.bag_audit import verify
from aloe_core.bag_format import LATCHED, RELIABLE, EpisodeInfo
from aloe_core.bag_labels import Label, append_label
from aloe_core.bag_writer import BagWriter
from aloe_core.cli import main
from aloe_core.errors import AloeError
from aloe_core.messages import bag_make, header_msg, typestore
from aloe_core.robot import load_robot
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome, Source

ROBOT = load_robot("aloha_sim")


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    folder = tmp_path / "bags" / "e"
    SyntheticEpisode(ROBOT, steps=50, cameras=("overhead",), human=(10, 20)).write(folder, "none")
    return folder


def test_a_sound_bag(bag: Path) -> None:
    check = verify(bag)
    assert check.ok
    assert (check.episode_id, check.outcome, check.steps) == ("e", "success", 50)
    topics = {t.topic: t for t in check.topics}
    transitions = topics["/control/transition"]
    assert (transitions.count, transitions.expected) == (50, 50)
    assert transitions.rate == pytest.approx(50)
    assert transitions.max_gap == pytest.approx(0.02)
    assert topics["/overhead/image_raw/compressed"].rate == pytest.approx(25)
    assert check.messages == sum(t.count for t in check.topics)
    assert check.duration == pytest.approx(1.0)


def test_a_gap_in_a_periodic_topic_is_found(tmp_path: Path) -> None:
    episode = SyntheticEpisode(ROBOT, steps=60, cameras=("overhead",))
    with BagWriter(tmp_path / "e", episode.info("e")) as writer:
        for topic, type, message, ns in episode.messages(writer.info):
            if not (topic.endswith("compressed") and 20 < (ns - 10**9) / 2e7 < 30):
                writer.write(topic, type, typestore().serialize_cdr(message, type).tobytes(), ns)
    problems = verify(tmp_path / "e").problems
    assert any("/overhead/image_raw/compressed: a gap of 0.200 s in a topic of 25.0 Hz" in p for p in problems)


def test_a_state_that_changes_now_and_then_is_not_periodic(tmp_path: Path) -> None:
    """A latched topic: published at every tick for a while, then not at all for half a second."""
    episode = SyntheticEpisode(ROBOT, steps=60)
    with BagWriter(tmp_path / "e", episode.info("e")) as writer:
        for topic, qos in (("/state", LATCHED), ("/stream", RELIABLE)):
            writer.add_topic(topic, "aloe_msgs/msg/SafetyStatus", qos)
        for topic, type, message, ns in episode.messages(writer.info):
            writer.write(topic, type, typestore().serialize_cdr(message, type).tobytes(), ns)
            if topic == "/control/transition" and not 20 < message.step < 45:
                fields = {"state": 0, "reason": 0, "joint": "", "message": "", "counters": np.zeros(12, np.uint64)}
                status = bag_make("aloe_msgs/msg/SafetyStatus", header=header_msg(bag_make, ns), **fields)
                for name in ("/state", "/stream"):
                    writer.write(
                        name, status.__msgtype__, typestore().serialize_cdr(status, status.__msgtype__).tobytes(), ns
                    )
    assert verify(tmp_path / "e").problems == ("/stream: a gap of 0.500 s in a topic of 50.0 Hz",)


def test_one_flipped_bit_is_found(bag: Path) -> None:
    file = bag / "e_0.mcap"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "is damaged (checksum)" in verify(bag).problems[0]


def test_counts_and_index_are_compared(bag: Path) -> None:
    text = (bag / "metadata.yaml").read_text()
    (bag / "metadata.yaml").write_text(text.replace("message_count: 50\n", "message_count: 49\n"))
    assert "/control/transition: 50 messages, metadata.yaml says 49" in verify(bag).problems
    (bag / "metadata.yaml").write_text(text)
    file = bag / "e_0.mcap"
    data = bytearray(file.read_bytes())
    data[-30] ^= 0xFF  # in the footer
    file.write_bytes(data)
    assert any("index" in p for p in verify(bag).problems)


def test_verify_and_recover_commands(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SyntheticEpisode(ROBOT, steps=5).write(tmp_path / "bags" / "killed", close=False)
    assert main(["bags", "verify", str(tmp_path / "bags"), "--json", str(tmp_path / "out.json")]) == 1
    printed = capsys.readouterr().out
    assert f"ok      {bag}: 50 steps" in printed
    assert "the recording was killed: run aloe bags recover" in printed
    assert "2 bags, 1 not in order" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert [w["ok"] for w in written] == [True, False]
    assert written[0]["topics"][0]["topic"] == "/episode/event"
    assert main(["bags", "recover", str(tmp_path / "bags")]) == 0
    printed = capsys.readouterr().out
    assert "nothing to recover" in printed
    assert "kept as killed_0.mcap.unfinalized" in printed
    assert main(["bags", "verify", str(tmp_path / "bags")]) == 0


def test_recover_goes_on_after_a_hopeless_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a_0.mcap").write_bytes(b"\x89MCAP0\r\n")
    SyntheticEpisode(ROBOT, steps=5).write(tmp_path / "b", close=False)
    assert main(["bags", "recover", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "no whole message in it" in printed
    assert "recovered  " in printed


def test_show_command(bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_label(bag, Label(Outcome.FAILURE, 1, "ada"))
    assert main(["bags", "show", str(bag)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "outcome      failure (task, labelled by ada)" in lines
    assert any("/overhead/image_raw/compressed" in line for line in lines)


class ByHand(SyntheticEpisode):
    """The attempt whose fragments `test_fragments.py` works out by hand, with two interventions in its human fragment."""

    def _transition(self, info: EpisodeInfo, t: int) -> Any:
        number = int(5 <= t < 8) + 2 * int(8 <= t < 11)
        return replace(super()._transition(info, t), source=EPISODE[t], intervention_id=number)


@pytest.mark.parametrize(
    ("protocol", "rows"),
    [
        (
            "aloe",
            """
   start [s]  end [s]     steps  source  intervention  outcome     end        may train
0       0.00     0.10    0 .. 4  policy  -             failure     terminal   policy, critic
1       0.10     0.24   5 .. 11  human   1, 2          unlabelled  truncated  policy, critic
2       0.24     0.32  12 .. 15  policy  -             success     terminal   policy, critic
""",
        ),
        (
            "hil_serl",
            """
   start [s]  end [s]     steps  source  intervention  outcome     end       may train
0       0.00     0.10    0 .. 4  policy  -             unlabelled  goes on   policy, critic
1       0.10     0.24   5 .. 11  human   1, 2          unlabelled  goes on   policy, critic
2       0.24     0.32  12 .. 15  policy  -             success     terminal  policy, critic
""",
        ),
        (
            "hg_dagger",
            """
   start [s]  end [s]     steps  source  intervention  outcome     end        may train
0       0.00     0.10    0 .. 4  policy  -             unlabelled  truncated  nothing
1       0.10     0.24   5 .. 11  human   1, 2          unlabelled  truncated  policy
2       0.24     0.32  12 .. 15  policy  -             success     terminal   nothing
""",
        ),
    ],
)
def test_show_prints_the_fragments_of_a_protocol(
    protocol: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ByHand(ROBOT, steps=len(EPISODE)).write(tmp_path / "e")
    assert main(["bags", "show", str(tmp_path / "e"), "--protocol", protocol]) == 0
    table = capsys.readouterr().out.split(f"fragments under the protocol {protocol}\n")[1].split("\n\n")[0]
    assert table == rows.strip("\n")


def test_show_names_the_arms_where_not_all_were_driven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class OneArm(SyntheticEpisode):
        def _transition(self, info: EpisodeInfo, t: int) -> Any:
            return replace(super()._transition(info, t), source=np.array([Source.POLICY, Source.HUMAN], np.uint8))

    OneArm(ROBOT, steps=5).write(tmp_path / "e")
    assert main(["bags", "show", str(tmp_path / "e")]) == 0
    assert "human (right)" in capsys.readouterr().out


def test_errors_are_one_sentence(tmp_path: Path, bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bags", "show", str(tmp_path / "nothing")]) == 1
    assert "is not a bag" in capsys.readouterr().err
    assert main(["bags", "verify", str(tmp_path / "nothing")]) == 1
    assert "no bags in" in capsys.readouterr().err
    assert main(["bags", "verify"]) == 1
    assert "name at least one bag" in capsys.readouterr().err
    assert main(["bags", "show", str(bag), "--robot", "bimanual_ur5e"]) == 1
    assert "was recorded with robot 'aloha_sim'" in capsys.readouterr().err
    with pytest.raises(AloeError, match="is not a bag"):
        verify(tmp_path / "nothing")
    shutil.rmtree(bag)
