"""Everything that reads files or frames of others, with valid inputs to start from. Each entry of `READERS` makes its inputs in a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import replay_rig as rig
import torch
import yaml
from fuzz import Reader, garble, tree_of
from rosbags.rosbag2 import StoragePlugin, Writer

from aloe_core.bag_audit import verify
from aloe_core.bag_labels import LABELS_FILE, Label, append_label, read_labels
from aloe_core.bag_messages import iter_messages
from aloe_core.bag_reader import read_episode
from aloe_core.bag_recover import recover
from aloe_core.errors import AloeError
from aloe_core.messages import typestore
from aloe_core.observation import Observation
from aloe_core.policy import load_policy
from aloe_core.robot import load_robot, robot_folder
from aloe_core.supervisor import ros_arguments
from aloe_core.supervisor_launchfile import declared_arguments, plan
from aloe_core.synthetic import SyntheticEpisode
from aloe_core.vocabulary import Outcome
from aloe_critic.critic_file import CRITIC_FILE, chunk_critic, load_critic
from aloe_critic.improve_config import load_config as load_improve
from aloe_critic.improvement import ImproveConfig
from aloe_critic.recording import Recording
from aloe_intervention.episode_store import STATE_FILE, Episode, EpisodeStore
from aloe_policy import remote
from aloe_policy.bc_config import BcConfig
from aloe_policy.bc_config import load_config as load_bc
from aloe_policy.checkpoint import POLICY_FILE, WEIGHTS_FILE, _content_hash
from aloe_policy.playback import Playback
from aloe_policy.replayed_bag import write_replayed
from aloe_policy.server import PolicyServer, describe
from aloe_policy.training_state import (
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    read_state,
    write_state,
)
from aloe_policy.wire import pack, unpack
from aloe_robot.calibration import identity_calibration, load_calibration

ROBOT = load_robot("aloha_sim")
LAUNCH = Path(__file__).resolve().parents[3] / "launch"


def _file(folder: Path, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Reads each input as a file of that name."""
    folder.mkdir(parents=True, exist_ok=True)

    def write_and_read(data: bytes) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return write_and_read


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode()


YAML = tree_of(yaml.safe_load, _yaml)
JSON = tree_of(json.loads, lambda tree: json.dumps(_texts(tree), default=str).encode())


def _texts(tree: Any) -> Any:
    """The same with keys that JSON has."""
    if isinstance(tree, dict):
        return {str(k): _texts(v) for k, v in tree.items()}
    return [_texts(v) for v in tree] if isinstance(tree, (list, tuple)) else tree


# -- bags --


def _bag(folder: Path, compression: str) -> Path:
    episode = SyntheticEpisode(ROBOT, steps=3, cameras=("overhead",), image_size=(16, 16), chunk_horizon=4)
    bag = folder / compression / "e"
    episode.write(bag, compression, chunk_bytes=4000)
    return bag


def _sqlite_bag(folder: Path) -> Path:
    """The same as ROS's own recorder writes it."""
    episode = SyntheticEpisode(ROBOT, steps=3, cameras=("overhead",), image_size=(16, 16), chunk_horizon=4)
    bag = folder / "sqlite" / "e"
    bag.parent.mkdir(parents=True)
    with Writer(bag, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {}
        for topic, kind, message, ns in episode.messages(episode.info("e")):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=typestore())
            writer.write(connections[topic], ns, typestore().serialize_cdr(message, kind))
    return bag


def _every(ways: Iterable[Callable[[Path], object]], folder: Path) -> None:
    """The refusal of one way of reading must not hide the others."""
    refusals = []
    for read in ways:
        try:
            read(folder)
        except AloeError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _read_bag(folder: Path) -> None:
    """What learns from a bag, shows or checks it."""
    _every((_read_episode, lambda f: list(iter_messages(f)), verify), folder)


def _replay_bag(folder: Path) -> None:
    """What replays a bag, in the graph and without."""
    _every((_play, _shadow), folder)


def _play(folder: Path) -> None:
    playback = Playback(folder, ROBOT)
    try:
        for _ in playback.messages():
            pass
    finally:
        playback.close()


def _shadow(folder: Path) -> None:
    """Observations at each request, and the bag written anew; its copy must be as readable as the bag was."""
    recording, target = Recording(folder, ROBOT), folder.parent / "replayed"
    shutil.rmtree(target, ignore_errors=True)
    try:
        for request in recording.asked((Echo(),), every=1):
            recording.observe(request.stamp_ns, Echo())
        write_replayed(folder, target, recording.info, [], {})
    finally:
        recording.close()
    list(iter_messages(target))


def _read_episode(folder: Path) -> None:
    record = read_episode(folder, ROBOT)
    for camera in record.cameras:
        for t in range(len(record) + 1):
            record.image(camera, t)


def mcap(folder: Path) -> Reader:
    """A finished bag whose MCAP file is wrong."""
    bags = [_bag(folder, name) for name in ("none", "lz4", "zstd")]
    (folder / "read").mkdir()
    shutil.copytree(bags[0], folder / "read" / "e")
    read = _file(folder / "read" / "e", "e_0.mcap", lambda file: _read_bag(file.parent))
    return Reader([(bag / "e_0.mcap").read_bytes() for bag in bags], read, garble)


def sqlite(folder: Path) -> Reader:
    """A bag of ROS's own recorder whose database is wrong."""
    bag = _sqlite_bag(folder)
    (file,) = bag.glob("*.db3")
    read = _file(bag, file.name, lambda file: _every((_read_bag, _replay_bag), file.parent))
    return Reader([file.read_bytes()], read, garble)


def replay(folder: Path) -> Reader:
    """A wrong bag, replayed."""
    bag = _bag(folder, "none")
    samples = [(bag / "e_0.mcap").read_bytes(), (_bag(folder, "zstd") / "e_0.mcap").read_bytes()]
    return Reader(samples, _file(bag, "e_0.mcap", lambda file: _replay_bag(file.parent)), garble)


def killed_mcap(folder: Path) -> Reader:
    """What a kill left: recovered, then read."""
    samples = [(_bag(folder, name) / "e_0.mcap").read_bytes() for name in ("none", "lz4", "zstd")]
    samples += [data[: len(data) * 3 // 4] for data in samples]

    def read(data: bytes) -> None:
        bag = folder / "read" / "e"
        shutil.rmtree(bag, ignore_errors=True)
        bag.mkdir(parents=True)
        (bag / "e_0.mcap").write_bytes(data)
        recover(bag)
        _read_bag(bag)

    return Reader(samples, read, garble)


def metadata(folder: Path) -> Reader:
    """A bag whose metadata.yaml is wrong."""
    bag = _bag(folder, "lz4")
    sample = (bag / "metadata.yaml").read_bytes()
    return Reader([sample], _file(bag, "metadata.yaml", lambda file: _read_bag(file.parent)), YAML)


def labels(folder: Path) -> Reader:
    """`labels.jsonl`."""
    folder.mkdir()
    for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
        append_label(folder, Label(outcome, 5, "operator", "a reason"))
    sample = (folder / LABELS_FILE).read_bytes()

    def lines(data: bytes) -> list:
        return [json.loads(line) for line in data.splitlines()]

    def text(tree: Any) -> bytes:
        lines = tree if isinstance(tree, list) else [tree]
        return b"\n".join(json.dumps(_texts(line), default=str).encode() for line in lines)

    change = tree_of(lines, text)
    return Reader([sample], _file(folder, LABELS_FILE, lambda file: read_labels(file.parent)), change)


def episode_state(folder: Path) -> Reader:
    """`episode_state.json`, from which a restarted episode_node goes on."""
    store = EpisodeStore(folder)
    store.save(Episode("e1", task="t", instruction="do it", seed=3, time_limit_s=8.0))
    return Reader([(folder / STATE_FILE).read_bytes()], _file(folder, STATE_FILE, lambda file: store.load()), JSON)


# -- checkpoints --


def _policy(folder: Path) -> Path:
    return rig.save_policy(folder / "policy")


def _propose(folder: Path) -> None:
    policy = load_policy(str(folder), ROBOT)
    seen = Observation(0, ROBOT.home.astype(np.float32), object_state=np.zeros(7, np.float32))
    assert policy.propose(seen, np.random.default_rng(0)).shape[1] == ROBOT.action_dim


def policy_json(folder: Path) -> Reader:
    """`policy.json` as somebody may write it who can also write the hash."""
    policy = _policy(folder)
    weights = (policy / WEIGHTS_FILE).read_bytes()
    plain = JSON

    def change(rng, data: bytes) -> bytes:
        data = plain(rng, data)
        try:
            tree = {k: v for k, v in json.loads(data).items() if k != "sha256"}
            return json.dumps({**tree, "sha256": _content_hash(tree, weights)}).encode()
        except (ValueError, AttributeError, RecursionError):
            return data

    sample = (policy / POLICY_FILE).read_bytes()
    return Reader([sample], _file(policy, POLICY_FILE, lambda file: _propose(file.parent)), change)


def policy_weights(folder: Path) -> Reader:
    """`model.safetensors`, with the hash that belongs to it."""
    policy = _policy(folder)
    description = json.loads((policy / POLICY_FILE).read_text())
    sample = (policy / WEIGHTS_FILE).read_bytes()

    def read(file: Path) -> None:
        tree = {k: v for k, v in description.items() if k != "sha256"}
        digest = _content_hash(tree, file.read_bytes())
        (policy / POLICY_FILE).write_text(json.dumps({**tree, "sha256": digest}))
        _propose(policy)

    return Reader([sample], _file(policy, WEIGHTS_FILE, read), _safetensors)


def _split(data: bytes) -> dict:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    facts = header.get("__metadata__", {}).get("aloe")
    return {"header": header, "facts": json.loads(facts) if facts else None, "data": data[8 + size :]}


def _join(parts: Any) -> bytes:
    parts = parts if isinstance(parts, dict) else {}
    header, facts = parts.get("header"), parts.get("facts")
    if facts is not None and isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header = {**header, "__metadata__": {**header["__metadata__"], "aloe": json.dumps(_texts(facts), default=str)}}
    text = json.dumps(_texts(header), default=str).encode()
    data = parts.get("data")
    return len(text).to_bytes(8, "little") + text + (data if isinstance(data, bytes) else b"")


_safetensors = tree_of(_split, _join, garble)  # header, the JSON that we keep in it, or bytes


def critic(folder: Path) -> Reader:
    """`critic.safetensors`."""
    sample = (rig.save_toy_critic(folder / "made", "test-0-00000000") / CRITIC_FILE).read_bytes()

    def read(file: Path) -> None:
        method, _, _ = load_critic(file)
        chunk_critic(method, str(file))

    return Reader([sample], _file(folder, CRITIC_FILE, read), _safetensors)


def training_state(folder: Path) -> Reader:
    """The state an interrupted training goes on from: a network and its optimizer."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    facts = {"identity": {"config": {"steps": 5}, "replay": "abc"}, "step": 3}
    file = folder / "made" / "state.safetensors"
    write_state(file, {**module_tensors("actor", network), **optimizer_tensors("optimizer", optimizer)}, facts)

    def read(file: Path) -> None:
        tensors, _ = read_state(file)
        load_module("actor", network, tensors, file)
        load_optimizer("optimizer", optimizer, tensors)

    return Reader([file.read_bytes()], _file(folder, "state.safetensors", read), _safetensors)


# -- YAML --


def robot(folder: Path) -> Reader:
    """Robot descriptions, and everything derived from them."""
    samples = [file.read_bytes() for file in sorted(robot_folder().glob("*.yaml"))]

    def read(file: Path) -> None:
        found = load_robot(file)
        for value in (found.hash, found.position_min, found.max_jerk, found.home, found.gripper_mask):
            assert value is not None

    return Reader(samples, _file(folder, "robot.yaml", read), YAML)


def bc_config(folder: Path) -> Reader:
    """`aloe train bc --config`."""
    return Reader([_yaml(_plain(asdict(BcConfig())))], _file(folder, "bc.yaml", load_bc), YAML)


def improve_config(folder: Path) -> Reader:
    """`aloe improve --config`."""
    samples = [_yaml(_plain(asdict(config))) for config in (ImproveConfig(), replace(ImproveConfig(), method="recap"))]
    return Reader(samples, _file(folder, "improve.yaml", load_improve), YAML)


def _plain(tree: Any) -> Any:
    return json.loads(json.dumps(tree, default=str))


def launch_file(folder: Path) -> Reader:
    """`aloe up FILE`, up to the command lines of the nodes."""

    def read(file: Path) -> None:
        yes = {"operated", "spacemouse", "teleop", "learner", "record", "cameras", "use_sim_time", "simulator"}
        wanted = [a.name for a in declared_arguments(file) if a.default is None]
        given = {name: "true" if name in yes else str(folder / "parameters.yaml") for name in wanted}
        for node in plan(file, given):
            ros_arguments(
                name=node.name, namespace=node.namespace, parameters=node.parameters, remappings=node.remappings
            )

    folder.mkdir()
    (folder / "parameters.yaml").write_text("/**: {ros__parameters: {x: 1}}")
    shutil.copytree(LAUNCH.parent / "config", folder.parent / "config", dirs_exist_ok=True)
    samples = [file.read_bytes() for file in sorted(LAUNCH.glob("*.launch.yaml"))]
    for file in LAUNCH.glob("*.launch.yaml"):  # for those that include others
        shutil.copy(file, folder / file.name)
    return Reader(samples, _file(folder, "fuzzed.launch.yaml", read), YAML)


def calibration(folder: Path) -> Reader:
    """A camera's calibration."""
    camera = ROBOT.cameras[0]
    sample = _yaml(identity_calibration(camera).model_dump(mode="json"))
    return Reader([sample], _file(folder, "calibration.yaml", lambda file: load_calibration(file, camera)), YAML)


# -- frames --


class Echo:
    """A policy whose chunk is the state it was shown."""

    version, horizon, cameras, image_size, uses_task_state = "echo-0-12345678", 4, ("overhead",), (8, 8), True

    def propose(self, observation, generator, prefix=None, prefix_steps=0) -> np.ndarray:
        chunk = np.tile(observation.state, (4, 1))
        if prefix is not None:
            chunk[:prefix_steps] = prefix[:prefix_steps]
        return chunk


OBSERVATION = {
    "state": np.zeros(14, np.float32),
    "images": {"overhead": np.zeros((6, 8, 3), np.uint8)},
    "prompt": "pick it up",
    "object_state": np.ones(7, np.float32),
    "sim_state": np.arange(5.0),
    "seed": 5,
    "prefix": np.zeros((3, 14), np.float32),
    "prefix_steps": 2,
}
PARTS = {"raw": True, "strict_map_key": False}


def _frame(tree: Any) -> bytes:
    return msgpack.packb(tree, default=str, use_bin_type=True) if not _too_big(tree) else b""


def _too_big(tree: Any) -> bool:
    """msgpack has no integers beyond 64 bits."""
    if isinstance(tree, dict):
        return any(_too_big(v) for pair in tree.items() for v in pair)
    if isinstance(tree, (list, tuple)):
        return any(map(_too_big, tree))
    return isinstance(tree, int) and not -(2**63) <= tree < 2**64


FRAME = tree_of(lambda data: msgpack.unpackb(data, strict_map_key=False), _frame, garble)  # arrays as the maps they are


def frame(folder: Path) -> Reader:
    """Frames, taken apart."""
    return Reader(
        [pack(OBSERVATION), pack({"actions": np.zeros((4, 14)), "n": np.float32(1)})],
        lambda data: unpack(data, "it"),
        FRAME,
    )


def server(folder: Path) -> Reader:
    """Observations that a client sends to `aloe serve`: of a policy that looks at everything, and of a real one."""
    folder.mkdir()
    servers = [PolicyServer(policy, ROBOT, port=0) for policy in (Echo(), load_policy(str(_policy(folder)), ROBOT))]

    def read(data: bytes) -> None:
        refusals = []
        for one in servers:
            try:
                unpack(one._answer(unpack(data, "observation")), "answer")
            except AloeError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    return Reader([pack(OBSERVATION)], read, FRAME)


def client(folder: Path) -> Reader:
    """What a server says to `RemotePolicy`: two frames, its description and an answer."""
    hello, answer = pack({"aloe": describe(Echo(), ROBOT)}), pack({"actions": np.zeros((4, 14), np.float32)})
    seen = Observation(
        0, np.zeros(14, np.float32), {"overhead": np.zeros((8, 8, 3), np.uint8)}, "x", np.ones(7), np.ones(5)
    )
    frames: list[bytes | str] = []

    class Connection:
        socket = SimpleNamespace(setsockopt=lambda *_: None)
        send = staticmethod(lambda frame: None)
        recv = staticmethod(lambda timeout: frames.pop(0))

    @contextmanager
    def connect(*_: object, **__: object):
        yield Connection

    remote.connect = connect

    def read(data: bytes) -> None:
        first, _, second = data.partition(b"--frame--")
        frames[:] = [first, second]
        remote.RemotePolicy("ws://nowhere", ROBOT).propose(seen, np.random.default_rng(0))

    def change(rng, data: bytes) -> bytes:
        parts = list(data.split(b"--frame--"))
        at = rng.randrange(2)
        parts[at] = FRAME(rng, parts[at])
        return b"--frame--".join(parts)

    return Reader([hello + b"--frame--" + answer], read, change)


READERS: dict[str, Callable[[Path], Reader]] = {
    function.__name__: function
    for function in (
        *(mcap, sqlite, replay, killed_mcap, metadata, labels, episode_state),
        *(policy_json, policy_weights, critic, training_state),
        *(robot, bc_config, improve_config, launch_file, calibration),
        *(frame, server, client),
    )
}
