"""The Rerun recording, read back with Rerun's own reader."""

import numpy as np
import pytest
import replay_rig as rig

from aloe_core import cli
from aloe_core.policy import load_policy
from aloe_core.synthetic import SyntheticEpisode
from aloe_critic.recording import Recording
from aloe_critic.replay_shadow import replay
from aloe_critic.replay_summary import newest_rows, read_replayed
from aloe_critic.scoring import ChunkScorer

chunk = pytest.importorskip("rerun.chunk", reason="needs rerun-sdk")

from aloe_critic.rerun_export import export, judge_executed  # noqa: E402

ROBOT = rig.ROBOT


def read_back(file):
    """entity path -> {component: values}, `time` in [ns]; static data left out."""
    found = {}
    for part in chunk.RrdReader(str(file)).stream().to_chunks():
        if part.is_static:
            continue
        columns = part.to_record_batch().to_pydict()
        merged = found.setdefault(part.entity_path, {})
        for name, values in columns.items():
            merged.setdefault(name.split(":")[-1], []).extend(values)
    for columns in found.values():
        columns["time"] = [int(t / np.timedelta64(1, "ns")) for t in np.array(columns["time"], "timedelta64[ns]")]
    return found


def origins(file):
    """Where the views of the recording's own layout look."""
    reader = chunk.RrdReader(str(file))
    (blueprint,) = reader.blueprints()
    tables = [part.to_record_batch() for part in reader.stream(store=blueprint).to_chunks()]
    columns = [t.column(n).to_pylist() for t in tables for n in t.schema.names if n.endswith("space_origin")]
    return {origin for column in columns for [origin] in column}


def scalars(columns):
    return np.array(columns["scalars"], np.float64).ravel()


def test_an_episode_with_a_human(tmp_path):
    episode = SyntheticEpisode(ROBOT, steps=30, human=(10, 20), cameras=("overhead",))
    episode.write(tmp_path / "bag")
    replayed = read_replayed(tmp_path / "bag")
    paths = export(replayed, tmp_path / "out" / "bag.rrd")
    replayed.recording.close()
    found = read_back(tmp_path / "out" / "bag.rrd")
    assert set(found) == {f"/{p}" for p in paths}
    ticks = [t * ROBOT.control_dt_ns for t in range(30)]
    for column, joint in enumerate(ROBOT.action_names):
        for name, values in (
            ("commanded", episode.executed),
            ("measured", episode.state),
            ("proposed", episode.proposal),
        ):
            line = found[f"/joints/{joint}/{name}"]
            assert line["time"] == ticks
            np.testing.assert_array_equal(scalars(line).astype(np.float32), values[:30, column])
    assert [s for [s] in found["/lanes/driver"]["state"]] == ["policy", "human", "policy"]
    assert found["/lanes/driver"]["time"] == [ticks[0], ticks[10], ticks[20]]
    assert [s for [s] in found["/lanes/intervention"]["state"]] == ["none", "take-over 1", "none"]
    assert found["/lanes/outcome"]["state"] == [["success"]]
    images = found["/cameras/overhead"]
    assert images["time"] == [t * ROBOT.control_dt_ns for t in range(0, 31, 2)]
    assert bytes(images["blob"][3][0]) == episode.jpeg("overhead", 6)
    assert not any(path.startswith("/critic") for path in found)


def test_values_and_proposals_of_a_replay(tmp_path):
    policy = rig.save_policy(tmp_path / "policy")
    critic = rig.save_toy_critic(tmp_path / "critic", "test")
    bag = rig.record(tmp_path / "bags", policy, seconds=0.6)
    scorer = ChunkScorer(critic, policy, ROBOT, samples=2)
    recording = Recording(bag)
    replay(recording, load_policy(str(policy), ROBOT), tmp_path / "out", scorer, seed=1)
    recording.close()
    shown = [str(tmp_path / "out"), "--critic", str(critic), "--policy", str(policy), "--samples", "2", "--every", "4"]
    assert cli.main(["bags", "to-rerun", *shown]) == 0
    found = read_back(tmp_path / "out.rrd")
    episode = read_replayed(tmp_path / "out")
    for name, values in (("recorded", episode.recorded_values), ("proposed", episode.proposed_values)):
        messages = [m for _, m in sorted(values.items())]
        for key in ("q", "v", "advantage"):
            assert scalars(found[f"/critic/{name}/{key}"]).tolist() == [getattr(m, key) for m in messages]
        first = "positive" if messages[0].advantage > 0 else "negative"
        assert found[f"/lanes/advantage_{name}"]["state"][0] == [first]
    rows = newest_rows(episode.proposals, episode.recording.stamps_ns)
    joint = found[f"/joints/{ROBOT.action_names[3]}/replayed"]
    np.testing.assert_array_equal(scalars(joint).astype(np.float32), rows[:, 3])
    executed = judge_executed(episode.recording, scorer, 4)
    assert len(executed) == len(range(0, 30 - rig.CRITIC_HORIZON + 1, 4))
    assert scalars(found["/critic/executed/q"]).tolist() == executed[:, 1].tolist()
    episode.recording.close()
    assert origins(tmp_path / "out.rrd") == {path.rpartition("/")[0] for path in found}  # everything is shown


def test_bad_wishes(tmp_path, capsys):
    SyntheticEpisode(ROBOT, steps=5).write(tmp_path / "bag")
    (tmp_path / "file").write_text("")
    for wrong, why in (
        (["--critic", "c"], "--critic and --policy belong together"),
        (["--every", "0"], "at least 1"),
        (["--output", str(tmp_path / "file" / "x.rrd")], "cannot write the recording"),
    ):
        assert cli.main(["bags", "to-rerun", str(tmp_path / "bag"), *wrong]) == 1
        assert why in capsys.readouterr().err
