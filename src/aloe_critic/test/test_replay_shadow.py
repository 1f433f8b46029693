"""Replay without ROS: the same policy gives the recorded chunks, the recording stays untouched, and the numbers are what they should be."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import replay_rig as rig
from rosbags.rosbag2 import StoragePlugin, Writer

from aloe_core import cli, topics
from aloe_core.bag_format import TopicQos
from aloe_core.bag_labels import Label, append_label
from aloe_core.bag_messages import iter_messages
from aloe_core.bag_reader import read_episode
from aloe_core.bag_storage import open_storage
from aloe_core.errors import AloeError
from aloe_core.messages import stamp_to_ns, typestore
from aloe_core.policy import load_policy
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_critic.recording import Recording
from aloe_critic.replay_shadow import replay
from aloe_critic.replay_summary import summarise
from aloe_critic.scoring import ChunkScorer
from aloe_policy.replayed_bag import CHUNK, RECORDED_CHUNK, VALUE, recorded_qos
from aloe_robot.rollout import Lockstep

ROBOT = rig.ROBOT


class Rehearsed:
    """Proposes what `rows` says for each tick, or wherever the arms are, plus `offset`; remembers what it saw."""

    version = "rehearsed-0-00000000"
    image_size = None
    uses_task_state = False

    def __init__(self, rows=None, offset=0.0, horizon=12, cameras=()):
        self.rows, self.offset, self.horizon, self.cameras = rows, offset, horizon, cameras
        self.seen = []

    def propose(self, observation, generator, prefix=None, prefix_steps=0):
        self.seen.append(observation)
        if self.rows is None:
            brightness = sum(float(i.mean()) for i in observation.images.values()) / 255
            steps = 0.01 * generator.standard_normal((self.horizon, ROBOT.action_dim)).cumsum(axis=0)
            return (observation.state + steps + 0.01 * brightness).astype(np.float32)
        start = round((observation.stamp_ns - 1_000_000_000) / ROBOT.control_dt_ns)
        chunk = np.resize(self.rows[start : start + self.horizon], (self.horizon, ROBOT.action_dim))
        return (chunk + self.offset).astype(np.float32)


def content(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def replayed(bag, policy, target, robot=None, **options):
    recording = Recording(bag, robot)
    try:
        return replay(recording, policy, target, **options)
    finally:
        recording.close()


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A checkpoint, a critic and a bag of that policy."""
    folder = tmp_path_factory.mktemp("flow")
    policy = rig.save_policy(folder / "policy")
    return policy, rig.save_toy_critic(folder / "critic", "test"), rig.record(folder / "bags", policy)


def test_the_policy_of_a_recording_proposes_what_it_proposed(flow, tmp_path):
    policy, _, bag = flow
    before = content(bag)
    assert replayed(bag, load_policy(str(policy), ROBOT), tmp_path / "out") == []
    assert content(bag) == before
    numbers = summarise(tmp_path / "out")
    assert numbers["recorded_chunks"] == {"pairs": 7, "identical": 7, "joint_rmse_rad": 0.0}
    assert numbers["values"] == {"recorded": None, "proposed": None}
    recorded = list(iter_messages(bag, [topics.CHUNK]))
    proposed = list(iter_messages(tmp_path / "out", [CHUNK]))
    assert [stamp_to_ns(p.message.header.stamp) for p in proposed] == [
        stamp_to_ns(r.message.header.stamp) for r in recorded
    ]
    assert all(
        np.array_equal(p.message.positions, r.message.positions) for p, r in zip(proposed, recorded, strict=True)
    )
    replayed(bag, load_policy(str(policy), ROBOT), tmp_path / "other_seed", seed=1)
    assert summarise(tmp_path / "other_seed")["recorded_chunks"]["identical"] == 0


def test_the_new_bag_holds_the_old_one(flow, tmp_path):
    policy, _, original = flow
    bag = Path(shutil.copytree(original, tmp_path / "recorded"))
    append_label(bag, Label(Outcome.FAILURE, 1, "judge"))
    replayed(bag, load_policy(str(policy), ROBOT), tmp_path / "out")
    old, new = open_storage(bag), open_storage(tmp_path / "out")
    keep = {t.name for t in old.topics()}
    assert {t.name for t in new.topics()} == keep | {f"/{CHUNK}"}
    for a, b in zip(old.scan(keep.__contains__), new.scan(keep.__contains__), strict=True):
        assert (a.topic, a.type, a.log_time_ns, a.publish_time_ns, a.data) == (b.topic, b.type, b.log_time_ns, b.publish_time_ns, b.data)  # fmt: skip
    times = [m.log_time_ns for m in new.scan(lambda name: True)]
    assert times == sorted(times)
    assert recorded_qos(bag, old) == {n: q for n, q in recorded_qos(tmp_path / "out", new).items() if n in keep}
    assert recorded_qos(bag, old)["/episode/event"] == TopicQos(durability="transient_local", depth=1)
    record = read_episode(tmp_path / "out")
    assert record.problems == []
    assert (record.outcome, record.label) == (Outcome.FAILURE, Label(Outcome.FAILURE, 1, "judge"))
    assert (record.info, record.outcome) == (read_episode(bag).info, read_episode(bag).outcome)
    assert new.custom_data["replayed_from"] == "recorded"
    again = Rehearsed()
    replayed(tmp_path / "out", again, tmp_path / "twice")  # the first replay's proposals do not pile up
    assert {m.message.policy_version for m in iter_messages(tmp_path / "twice", [CHUNK])} == {again.version}


@pytest.mark.render
def test_images_are_those_the_robot_used(tmp_path):
    live, later = Rehearsed(cameras=("overhead", "left_wrist")), Rehearsed(cameras=("overhead", "left_wrist"))
    live.image_size = later.image_size = (64, 64)
    bag = Lockstep(ROBOT, "transfer_cube", live).run(3, time_limit=0.6, bags=tmp_path / "bags", episode_id="seen").bag
    replayed(bag, later, tmp_path / "out")
    assert summarise(tmp_path / "out")["recorded_chunks"]["identical"] == len(live.seen) == len(later.seen) >= 3
    for a, b in zip(live.seen, later.seen, strict=True):
        assert a.camera_stamps_ns == b.camera_stamps_ns
        for camera in live.cameras:
            np.testing.assert_array_equal(a.images[camera], b.images[camera])


def test_an_image_that_came_late_is_not_used_in_replay_either(tmp_path):
    """Synthetic chunks name, at odd ticks, the image of the tick before; without a chunk the newest one counts."""
    episode = SyntheticEpisode(ROBOT, steps=20, cameras=("overhead",), image_every=1)
    episode.image_every = 2  # what the chunks name
    chunks = episode.messages(episode.info("late"))
    episode.image_every = 1
    images = episode.messages(episode.info("late"))
    episode.messages = lambda info: [m for m in chunks if "image" not in m[0]] + [m for m in images if "image" in m[0]]
    episode.write(tmp_path / "late")
    recording = Recording(tmp_path / "late", ROBOT)
    looks = Rehearsed(cameras=("overhead",))
    stamps = [int(s) for s in episode.stamps_ns]
    assert recording.observe(stamps[5], looks).camera_stamps_ns == {
        "overhead": stamps[4]
    }  # named by the chunk of tick 5
    assert recording.observe(stamps[7], looks).camera_stamps_ns == {"overhead": stamps[7]}
    with pytest.raises(AloeError, match="no images of camera 'left_wrist'; it has: overhead"):
        recording.observe(stamps[5], Rehearsed(cameras=("left_wrist",)))
    recording.close()


def test_errors_are_those_of_each_source(tmp_path):
    """A policy that proposes what was executed, but 0.1 off while the human drives."""
    episode = SyntheticEpisode(ROBOT, steps=40, human=(10, 20), chunk_every=5)
    episode.write(tmp_path / "bag")
    wanted = episode.executed.copy()
    wanted[10:20] += 0.1
    replayed(tmp_path / "bag", Rehearsed(wanted), tmp_path / "out")
    numbers = summarise(tmp_path / "out")
    human, policy = numbers["error"]["human"], numbers["error"]["policy"]
    assert (human["ticks"], policy["ticks"]) == (10, 30)
    assert human["joint_rmse_rad"] == pytest.approx(0.1, abs=1e-6)
    assert human["gripper_rmse"] == pytest.approx(0.1, abs=1e-6)
    assert policy["joint_max_rad"] == 0.0
    assert (numbers["proposals"], numbers["compared_with"]) == (8, "executed")
    replayed(tmp_path / "bag", Rehearsed(wanted, horizon=2), tmp_path / "short", every=4)
    short = summarise(tmp_path / "short")  # rows end before the next proposal: only ticks with a row are compared
    assert (short["proposals"], short["error"]["human"]["ticks"] + short["error"]["policy"]["ticks"]) == (10, 20)


def test_a_replay_that_ros_recorded(flow, tmp_path):
    """As docs/replay.md says for `ros2 bag play`: the recorded chunks are on the name under which they were played, and the bag says nothing of itself."""
    policy, critic, bag = flow
    replayed(bag, load_policy(str(policy), ROBOT), tmp_path / "ours", scorer=ChunkScorer(critic, policy, ROBOT))
    store = typestore()
    played = {f"/{topics.CHUNK}": f"/{RECORDED_CHUNK}"}
    for name in (ROBOT.joint_states_topic, topics.TASK_STATE, topics.CHUNK_REQUEST, topics.EPISODE_EVENT, topics.TRANSITION):  # fmt: skip
        played["/" + name.lstrip("/")] = "/" + name.lstrip("/")
    played |= {f"/{name}": f"/{name}" for name in (CHUNK, VALUE, topics.CRITIC_VALUE)}
    with Writer(tmp_path / "ros", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        storage = open_storage(tmp_path / "ours")
        types = {t.name: t.type for t in storage.topics()}
        to = {a: writer.add_connection(b, types[a], typestore=store) for a, b in played.items()}
        for raw in storage.scan(to.__contains__):
            writer.write(to[raw.topic], raw.log_time_ns, bytes(raw.data))
        storage.close()
    expected = {**summarise(tmp_path / "ours"), "bag": "ros"}
    assert expected["recorded_chunks"]["pairs"] == expected["agreement"]["pairs"] == 7
    assert summarise(tmp_path / "ros", ROBOT) == expected
    assert replayed(tmp_path / "ros", load_policy(str(policy), ROBOT), tmp_path / "again", ROBOT) == []
    assert summarise(tmp_path / "again", ROBOT)["recorded_chunks"]["identical"] == 7


def test_the_critic_judges_recorded_and_proposed(flow, tmp_path):
    policy, critic, bag = flow
    scorer = ChunkScorer(critic, policy, ROBOT, samples=3)
    replayed(bag, load_policy(str(policy), ROBOT), tmp_path / "same", scorer=scorer)
    same = summarise(tmp_path / "same")
    values = {t: [m.message for m in iter_messages(tmp_path / "same", [t])] for t in (VALUE, topics.CRITIC_VALUE)}
    assert [v.q for v in values[VALUE]] == [v.q for v in values[topics.CRITIC_VALUE]]  # equal chunks, equal values
    assert len(values[VALUE]) == 7
    assert len({v.q for v in values[VALUE]}) == 7
    for value in values[VALUE]:
        assert value.q == min(value.q_heads)
        assert value.advantage == pytest.approx(value.q - value.v)
    assert same["agreement"] == {"pairs": 7, "same_sign": 1.0, "proposal_preferred": 0.0}
    assert same["values"]["proposed"]["q"] == pytest.approx(np.mean([v.q for v in values[VALUE]]))
    replayed(tmp_path / "same", Rehearsed(), tmp_path / "other", scorer=scorer)
    other = summarise(tmp_path / "other")
    assert other["values"]["recorded"]["chunks"] == 7  # those of the first replay were replaced, not kept beside
    assert other["values"]["recorded"]["q"] == pytest.approx(same["values"]["recorded"]["q"])
    assert other["values"]["proposed"]["q"] != same["values"]["proposed"]["q"]
    problems = replayed(bag, Rehearsed(horizon=5), tmp_path / "short", scorer=scorer)
    assert len(problems) == 7
    assert "replay/value of request 1: the critic judges 10 action steps, this chunk has 5" in problems[0]
    short = summarise(tmp_path / "short")
    assert (short["values"]["proposed"], short["agreement"]) == (None, None)
    assert short["values"]["recorded"] == other["values"]["recorded"]


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_of_ros_itself(tmp_path, plugin):
    begin = rig.foreign_bag(tmp_path / "ros", plugin)
    offered = recorded_qos(tmp_path / "ros", open_storage(tmp_path / "ros"))  # no depth is known: enough for a burst
    assert offered[ROBOT.joint_states_topic] == TopicQos(depth=10)
    assert offered["/overhead/image_raw/compressed"] == TopicQos("best_effort", depth=10)
    policy = Rehearsed(cameras=("overhead",))
    policy.propose = lambda seen, generator, prefix=None, steps=0: (
        policy.seen.append(seen) or (seen.state + 0.5 * 0.02 * np.arange(1, 13, dtype=np.float32)[:, None])
    )
    with pytest.raises(AloeError, match="does not say which robot it was recorded with; name the robot"):
        Recording(tmp_path / "ros")
    assert replayed(tmp_path / "ros", policy, tmp_path / "out", ROBOT, every=10) == []
    numbers = summarise(tmp_path / "out")
    assert (numbers["episode_id"], numbers["compared_with"], numbers["ticks"]) == ("ros", "measured", 59)
    first = begin + 20_000_000  # the first tick with an image, which came at 10 ms
    assert [s.stamp_ns for s in policy.seen] == [first + k * 200_000_000 for k in range(6)]
    assert policy.seen[0].camera_stamps_ns == {"overhead": begin + 10_000_000}
    # the proposal continues the motion, so it is where the arms were measured one tick later
    assert numbers["error"]["unknown"]["joint_max_rad"] < 1e-5
    assert numbers["error"]["unknown"]["ticks"] == 58
    topics_of = {t.name for t in open_storage(tmp_path / "out").topics()}
    assert topics_of == {ROBOT.joint_states_topic, "/overhead/image_raw/compressed", "/heat", f"/{CHUNK}"}
    policy.seen.clear()
    replayed(tmp_path / "ros", policy, tmp_path / "default", ROBOT)
    assert [s.stamp_ns for s in policy.seen] == [first + k * 500_000_000 for k in range(3)]  # every 25 ticks


def test_command_line(flow, tmp_path, capsys):
    policy, critic, bag = flow
    given = [str(bag), "--policy", str(policy), "--critic", str(critic), "--samples", "2", "--output", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(["replay", *given]) == 0
    out = capsys.readouterr().out
    assert "7/7 as recorded" in out
    assert "same sign 100 %" in out
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["bags"]
    assert (row["bag"], row["left_out"], row["values"]["proposed"]["chunks"]) == ("recorded", [], 7)
    assert cli.main(["replay", *given]) == 1
    assert "exists already; bags are never overwritten" in capsys.readouterr().err
    assert cli.main(["replay", str(tmp_path / "out"), "--output", str(tmp_path / "again")]) == 0  # numbers alone
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["bags"] == [row]
    for wrong, why in (
        ([str(bag), "--output", str(tmp_path / "x")], "holds no proposals on replay/chunk"),
        ([str(bag), "--policy", "scripted", "--critic", str(critic), "--output", "x"], "--critic-policy"),
        ([str(bag), "--critic", str(critic), "--output", "x"], "a critic needs a policy"),
        (
            [str(tmp_path), "--policy", "scripted", "--robot", "bimanual_ur5e", "--output", "x"],
            "was recorded with robot",
        ),
    ):
        assert cli.main(["replay", *wrong]) == 1
        assert why in capsys.readouterr().err
    assert not Path("x").exists()
