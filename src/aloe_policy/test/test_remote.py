"""A policy behind a real socket: the same chunks as without one, and a sentence for everything that can go wrong between."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.policy import load_policy
from aloe_core.robot import RobotDescription, load_robot
from aloe_policy.remote import API_KEY_VARIABLE, RemotePolicy
from aloe_policy.server import MAX_PROMPT, PolicyServer, describe
from aloe_policy.wire import MAX_FRAME_BYTES, pack, unpack

ROBOT = load_robot("aloha_sim")


class Echo:
    """A policy whose chunk tells everything it was given."""

    version, horizon, cameras, image_size, uses_task_state = "echo-0-12345678", 4, ("overhead",), (8, 8), True

    def __init__(self) -> None:
        self.delay = 0.0
        self.seen: list[Observation] = []

    def propose(self, observation, generator, prefix=None, prefix_steps=0) -> np.ndarray:
        time.sleep(self.delay)
        self.seen.append(observation)
        chunk = np.tile(observation.state, (4, 1)) + generator.normal(size=(4, 14))
        if prefix is not None:
            chunk[:prefix_steps] = prefix[:prefix_steps]
        return chunk.astype(np.float32)


OBSERVATION = Observation(
    stamp_ns=5,
    state=np.linspace(-1, 1, 14, dtype=np.float32),
    images={"overhead": np.arange(192, dtype=np.uint8).reshape(8, 8, 3)},
    instruction="pick it up",
    object_state=np.ones(7, np.float32),
    sim_state=np.arange(5.0),
)


class Running:
    """A server in a thread."""

    def __init__(self, **options) -> None:
        self.policy = Echo()
        self.server = PolicyServer(self.policy, ROBOT, port=options.pop("port", 0), **options)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.url = f"ws://127.0.0.1:{self.server.port}"

    def stop(self) -> None:
        self.server.close()
        self.thread.join()


@pytest.fixture
def running() -> Iterator[Running]:
    server = Running()
    yield server
    server.stop()


def test_the_chunk_is_the_one_the_policy_gives_without_a_socket(running: Running) -> None:
    remote = load_policy(f"remote:{running.url}", ROBOT)
    assert (remote.version, remote.horizon, remote.cameras) == ("echo-0-12345678", 4, ("overhead",))
    assert (remote.image_size, remote.uses_task_state) == ((8, 8), True)
    prefix = np.full((3, 14), 7.0, np.float32)
    there = remote.propose(OBSERVATION, np.random.default_rng(3), prefix, 2)
    seed = int(np.random.default_rng(3).integers(2**63))
    here = Echo().propose(OBSERVATION, np.random.default_rng(seed), prefix, 2)
    np.testing.assert_array_equal(there, here)
    (seen,) = running.policy.seen
    for field in ("state", "object_state", "sim_state"):
        np.testing.assert_array_equal(getattr(seen, field), getattr(OBSERVATION, field))
    np.testing.assert_array_equal(seen.images["overhead"], OBSERVATION.images["overhead"])
    assert seen.instruction == "pick it up"
    remote.close()


def test_a_restarted_server_is_found_again() -> None:
    first = Running()
    remote = RemotePolicy(first.url, ROBOT)
    before = remote.propose(OBSERVATION, np.random.default_rng(0))
    first.stop()
    with pytest.raises(AloeError, match="cannot be reached"):
        remote.propose(OBSERVATION, np.random.default_rng(0))
    second = Running(port=first.server.port)
    np.testing.assert_array_equal(remote.propose(OBSERVATION, np.random.default_rng(0)), before)
    second.stop()
    remote.close()


def test_a_slow_server_costs_one_chunk_and_not_the_order_of_answers(running: Running) -> None:
    remote = RemotePolicy(running.url, ROBOT, timeout=0.5)
    running.policy.delay = 1.0
    with pytest.raises(AloeError, match=r"did not answer within 0\.5 s"):
        remote.propose(OBSERVATION, np.random.default_rng(0))
    running.policy.delay = 0.0
    seed = int(np.random.default_rng(1).integers(2**63))
    remote.timeout = 10.0
    answer = remote.propose(OBSERVATION, np.random.default_rng(1))
    np.testing.assert_array_equal(answer, Echo().propose(OBSERVATION, np.random.default_rng(seed)))
    remote.close()


def test_the_api_key_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Running(api_key="secret")
    with pytest.raises(AloeError, match="wants another API key"):
        RemotePolicy(server.url, ROBOT, api_key="wrong")
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    remote = load_policy(f"remote:{server.url}", ROBOT)
    assert remote.propose(OBSERVATION, np.random.default_rng(0)).shape == (4, 14)
    remote.close()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server.port}/healthz") as answer:
        assert answer.status == 200
    server.stop()


def test_another_robot_is_refused(running: Running) -> None:
    arm = ROBOT.model_copy(update={"arms": ROBOT.arms[:1]})
    with pytest.raises(AloeError, match=r"drives joints .* robot 'aloha_sim' has"):
        RemotePolicy(running.url, arm)


def test_another_control_rate_is_refused(running: Running) -> None:
    slow = RobotDescription.model_validate(ROBOT.model_dump() | {"control_rate_hz": 25.0})
    with pytest.raises(AloeError, match=f"hash {ROBOT.hash}, robot 'aloha_sim' has hash {slow.hash}: .* control rate"):
        RemotePolicy(running.url, slow)


def good() -> dict:
    return {"state": np.zeros(14), "images": {"overhead": np.zeros((8, 8, 3), np.uint8)}, "prompt": "go"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros(7)}, "'state' must be an array of 14 numbers, not one of shape (7,)"),
        ({"state": np.full(14, np.nan)}, "'state' is not finite"),
        ({"state": "zero"}, "'state' must be an array of 14 numbers, there is none"),
        ({"images": {}}, "'images/overhead' is missing"),
        ({"images": {"overhead": np.zeros((8, 8, 3))}}, "'images/overhead' is missing, or not uint8"),
        ({"images": {"overhead": np.zeros((0, 8, 3), np.uint8)}}, "'images/overhead' is empty"),
        ({"images": 3}, "'images' is not a mapping"),
        ({"prompt": 3}, "'prompt' is not a text"),
        ({"prompt": "x" * (MAX_PROMPT + 1)}, f"'prompt' has {MAX_PROMPT + 1} characters, more than {MAX_PROMPT}"),
        ({"prefix": np.zeros((2, 3))}, "'prefix' must be an array of n x 14 numbers"),
    ],
)
def test_bad_observations_get_a_sentence_and_the_connection_lives(running: Running, change: dict, message: str) -> None:
    with connect(running.url) as client:
        client.recv()
        client.send(pack(good() | change))
        answer = client.recv()
        assert isinstance(answer, str)
        assert message in answer
        client.send(pack(good()))
        assert unpack(client.recv(), "answer")["actions"].shape == (4, 14)


def test_images_with_the_channel_first_are_understood(running: Running) -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    with connect(running.url) as client:
        client.recv()
        client.send(pack(good() | {"images": {"overhead": image.transpose(2, 0, 1)}}))
        client.recv()
    np.testing.assert_array_equal(running.policy.seen[0].images["overhead"], image)


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x80\x04garbage", "text", pack({"a": 1})[:-1], b"\x01"], ids=repr)
def test_malformed_frames_end_their_connection_only(running: Running, frame: bytes | str) -> None:
    with connect(running.url) as client:
        client.recv()
        client.send(frame)
        assert isinstance(client.recv(), str)
        with pytest.raises(ConnectionClosed):
            client.recv()
    with connect(running.url) as client:
        client.recv()
        client.send(pack(good()))
        assert isinstance(client.recv(), bytes)


def test_oversized_frames_are_refused(running: Running) -> None:
    with connect(running.url, compression=None) as client:
        client.recv()
        client.send(bytes(MAX_FRAME_BYTES + 1))
        with pytest.raises(ConnectionClosed):
            client.recv()


@contextmanager
def foreign(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    """The URL of somebody else's server."""
    with serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def test_what_a_server_may_answer() -> None:
    answers = iter(
        [
            pack({"actions": np.zeros((3, 14))}),
            pack({"actions": np.zeros((3, 13))}),
            pack({"actions": np.full((3, 14), np.inf)}),
            pack({}),
            b"\xc1",
            "Traceback (most recent call last):\n  ...\nValueError: no such camera",
        ]
    )
    frames = []

    def handler(connection: ServerConnection) -> None:
        connection.send(pack({}))  # an openpi server that tells nothing of itself
        for frame in connection:
            frames.append(unpack(frame, "observation"))
            connection.send(next(answers))

    with foreign(handler) as url:
        remote = load_policy(f"remote:{url}?cameras=overhead:cam_high,left_wrist&horizon=3&image_size=8", ROBOT)
        assert (remote.cameras, remote.horizon, remote.image_size) == (("overhead", "left_wrist"), 3, (8, 8))
        wrist = np.arange(192, dtype=np.uint8)[::-1].reshape(8, 8, 3)
        seen = replace(OBSERVATION, images={**OBSERVATION.images, "left_wrist": wrist})
        assert remote.propose(seen, np.random.default_rng(0)).shape == (3, 14)
        assert frames[0].keys() == {"state", "images", "prompt"}
        np.testing.assert_array_equal(frames[0]["state"], seen.state)
        assert frames[0]["prompt"] == "pick it up"
        assert frames[0]["images"].keys() == {"cam_high", "left_wrist"}
        np.testing.assert_array_equal(frames[0]["images"]["cam_high"], seen.images["overhead"].transpose(2, 0, 1))
        np.testing.assert_array_equal(frames[0]["images"]["left_wrist"], wrist.transpose(2, 0, 1))
        for message in (
            r"'actions' must be \[H, 14\], not \(3, 13\)",
            "the chunk is not finite",
            "'actions' must be",
            "malformed frame of 1 bytes",
            "ValueError: no such camera",
        ):
            with pytest.raises(AloeError, match=message):
                remote.propose(seen, np.random.default_rng(0))
        remote.close()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("remote:ws://h:1?camera=overhead", {}, "'camera' is unknown .* known are cameras, horizon and image_size"),
        ("remote:ws://h:1?horizon=3&horizon=4", {}, "'horizon' is unknown or there twice"),
        ("remote:ws://h:1?horizon=fifty", {}, "horizon must be a whole number from 1 to 9999, not 'fifty'"),
        ("remote:ws://h:1?image_size=0", {}, "image_size must be a whole number from 1 to 9999, not '0'"),
        ("remote:ws://h:1?cameras=ceiling", {}, "no camera 'ceiling'"),
        ("remote:ws://h:1", {"device": "cuda"}, "give the device 'cuda' to `aloe serve`"),
    ],
)
def test_options_that_a_remote_policy_does_not_take(spec: str, options: dict, message: str) -> None:
    with pytest.raises(AloeError, match=message):
        load_policy(spec, ROBOT, **options)


ECHO = pack({"aloe": describe(Echo(), ROBOT)})
STRANGE = pack({"aloe": describe(Echo(), ROBOT) | {"cameras": ["ceiling"]}})


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (b"\xc1", "malformed frame"),
        ("hello", "a text frame"),
        (STRANGE, "no camera 'ceiling'"),
        (pack({}), "no longer says what it drives"),
    ],
    ids=["malformed", "text", "strange", "silent"],
)
def test_a_server_that_does_not_introduce_itself_is_never_asked(first: bytes | str, message: str) -> None:
    introductions = iter([ECHO, first, first, ECHO])
    left = queue.SimpleQueue()

    def handler(connection: ServerConnection) -> None:
        connection.send(next(introductions))
        for _ in connection:
            connection.send(pack({"actions": np.zeros((4, 14))}))
        left.put(None)

    with foreign(handler) as url:
        remote = RemotePolicy(url, ROBOT)
        remote.close()
        left.get()
        for _ in range(2):
            with pytest.raises(AloeError, match=message):
                remote.propose(OBSERVATION, np.random.default_rng(0))
            left.get(timeout=60)  # the connection did not stay open
        assert remote.propose(OBSERVATION, np.random.default_rng(0)).shape == (4, 14)
        remote.close()


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_remote import Running
running = Running()
print(running.url, flush=True)
running.thread.join()
"""


def test_a_server_that_has_stopped_does_not_keep_the_caller() -> None:
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            remote = RemotePolicy(process.stdout.readline().strip(), ROBOT, timeout=2.0)
            assert remote.propose(OBSERVATION, np.random.default_rng(0)).shape == (4, 14)
            process.send_signal(signal.SIGSTOP)
            full = replace(OBSERVATION, sim_state=np.zeros(MAX_FRAME_BYTES // 8))  # more than sockets hold
            with pytest.raises(AloeError, match="did not take the observation within 2 s"):
                remote.propose(full, np.random.default_rng(0))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("url", "message"), [("ws://127.0.0.1:1", "cannot be reached"), ("http://127.0.0.1:1", "is no policy server")]
)
def test_no_server(url: str, message: str) -> None:
    with pytest.raises(AloeError, match=message):
        RemotePolicy(url, ROBOT, timeout=1.0)


def test_a_used_port(running: Running) -> None:
    with pytest.raises(AloeError, match=f"cannot listen on 127.0.0.1:{running.server.port}"):
        PolicyServer(Echo(), ROBOT, port=running.server.port)


NUMBERS = st.sampled_from(["f4", "f8", "u1", "i8", "?"]).flatmap(
    lambda t: arrays.arrays(t, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(message=st.dictionaries(st.text(max_size=5), NUMBERS | st.text(max_size=5) | st.integers(-5, 5) | st.none()))
def test_frames_come_back_equal(message: dict) -> None:
    back = unpack(pack(message), "test")
    assert back.keys() == message.keys()
    for key, value in message.items():
        np.testing.assert_array_equal(back[key], value)
        if isinstance(value, np.ndarray):
            assert back[key].dtype == value.dtype


@given(frame=st.binary(max_size=200))
def test_any_bytes_are_a_mapping_or_an_error(frame: bytes) -> None:
    try:
        message = unpack(frame, "test")
    except AloeError:
        return
    assert isinstance(message, dict)


@pytest.mark.parametrize(
    "item",
    [
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "|O", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [2]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": [-1]},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "f4,f4", b"shape": [1]},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0] * 40},
        {b"__ndarray__": True},
        {b"__npgeneric__": True, b"dtype": "|O", b"data": "x"},
    ],
)
def test_arrays_that_are_none(item: dict) -> None:
    import msgpack

    with pytest.raises(AloeError, match="malformed frame"):
        unpack(msgpack.packb({"x": item}), "test")


def test_objects_are_not_sent() -> None:
    with pytest.raises(AloeError, match="arrays of type object cannot be sent"):
        pack({"x": np.array([{}], dtype=object)})
