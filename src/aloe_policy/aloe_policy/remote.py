"""RemotePolicy: a policy on another machine, over openpi's websocket protocol; ours (`aloe serve`) or openpi's own server."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from socket import SO_SNDTIMEO, SOL_SOCKET
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from aloe_core.errors import AloeError
from aloe_core.observation import Observation
from aloe_core.robot import RobotDescription
from aloe_policy.wire import DEFAULT_PORT, MAX_FRAME_BYTES, pack, unpack

API_KEY_VARIABLE = "ALOE_API_KEY"


class RemotePolicy:
    """A `ChunkPolicy` that asks a server. A connection that was lost is made again once per chunk, before giving up.

    Args:
        url: `ws://host:port`.
        robot: the robot to drive.
        api_key: sent as `Authorization: Api-Key ...`; empty: none.
        timeout: longest wait for a connection, for taking an observation, and for an answer [s].
        horizon: rows of a chunk; only for servers that do not say (openpi's).
        cameras: camera -> its name at the server; only for servers that do not say.
        image_size: side of the square images [pixel]; only for servers that do not say.
    """

    def __init__(
        self,
        url: str,
        robot: RobotDescription,
        api_key: str = "",
        timeout: float = 5.0,
        horizon: int = 50,
        cameras: dict[str, str] | None = None,
        image_size: int = 224,
    ) -> None:
        """Raises `AloeError` when there is no server, or one for another robot, or the robot has no such camera."""
        self.url, self.robot, self.timeout = url, robot, timeout
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._connection: ClientConnection | None = None
        self._open = ExitStack()  # closes the connection
        self._aloe = False
        self.version, self.horizon = f"remote-{url}", horizon
        self.camera_names = {robot.camera(camera).name: name for camera, name in (cameras or {}).items()}
        self.image_size: tuple[int, int] | None = (image_size, image_size)
        self.uses_task_state = False
        self._connect()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras whose images are sent."""
        return tuple(self.camera_names)

    def propose(
        self,
        observation: Observation,
        generator: np.random.Generator,
        prefix: np.ndarray | None = None,
        prefix_steps: int = 0,
    ) -> np.ndarray:
        """A chunk float32 `[H, A]`; see `ChunkPolicy.propose`.

        Raises:
            AloeError: the server is gone, too slow, refuses the observation, or answers something else than a finite chunk.
        """
        frame = pack(self._message(observation, int(generator.integers(2**63)), prefix, prefix_steps))
        try:
            answer = self._ask(frame)
        except ConnectionClosed:  # the server was restarted, say
            self.close()
            self._connect()
            try:
                answer = self._ask(frame)
            except ConnectionClosed as error:
                self.close()
                raise AloeError(f"policy server {self.url} closed the connection: {error}") from None
        if isinstance(answer, str):
            raise AloeError(
                f"policy server {self.url}: {answer.strip().splitlines()[-1] if answer.strip() else 'error'}"
            )
        return self._chunk(unpack(answer, f"policy server {self.url}"))

    def close(self) -> None:
        """Ends the connection."""
        self._connection = None
        self._open.close()

    def _connect(self) -> None:
        try:
            opening = connect(
                self.url,
                additional_headers=self._headers,
                open_timeout=self.timeout,
                close_timeout=1.0,
                max_size=MAX_FRAME_BYTES,
                compression=None,
                proxy=None,
            )
            connection = self._open.enter_context(opening)
        except InvalidStatus as error:
            code = error.response.status_code
            reason = (
                f"it wants another API key (set {API_KEY_VARIABLE})" if code in (401, 403) else f"HTTP status {code}"
            )
            raise AloeError(f"policy server {self.url} refused the connection: {reason}") from None
        except (InvalidURI, InvalidHandshake) as error:
            raise AloeError(f"{self.url} is no policy server: {error}") from None
        except OSError as error:  # TimeoutError among them
            raise AloeError(f"policy server {self.url} cannot be reached: {error or 'timed out'}") from None
        # A server that has stopped would keep `send` for ever; `settimeout` would end the thread that receives.
        seconds, rest = divmod(self.timeout, 1)
        try:
            connection.socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6)))
            metadata = unpack(connection.recv(self.timeout), f"policy server {self.url}")
            if isinstance(metadata.get("aloe"), dict):
                self._adopt(metadata["aloe"])
            elif self._aloe:
                raise AloeError(
                    f"policy server {self.url} no longer says what it drives; another one has taken its place"
                )
        except (OSError, ConnectionClosed):  # TimeoutError among them, and a socket that is closed already
            self.close()
            raise AloeError(f"policy server {self.url} said nothing within {self.timeout:g} s of connecting") from None
        except AloeError:
            self.close()
            raise
        self._connection = connection

    def _adopt(self, facts: dict[str, Any]) -> None:
        """Takes over what one of our own servers says of its policy; raises `AloeError` when it is not for this robot."""
        names = facts.get("action_names")
        if names != list(self.robot.action_names):
            raise AloeError(
                f"policy server {self.url} drives joints {names}, robot '{self.robot.name}' has {list(self.robot.action_names)}"
            )
        robot_hash = facts.get("robot_hash")
        if robot_hash and robot_hash != self.robot.hash:
            raise AloeError(
                f"policy server {self.url} drives a robot with hash {robot_hash}, robot '{self.robot.name}' has hash {self.robot.hash}: "
                "arms, control rate or cameras differ"
            )
        try:
            self.version, self.horizon = str(facts["version"]), int(facts["horizon"])
            self.camera_names = {self.robot.camera(c).name: c for c in facts["cameras"]}
            size = facts["image_size"]
            self.image_size = (int(size[0]), int(size[1])) if size else None
            self.uses_task_state = bool(facts["uses_task_state"])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise AloeError(f"policy server {self.url} describes itself wrongly: {error!r}") from None
        self._aloe = True

    def _message(
        self, observation: Observation, seed: int, prefix: np.ndarray | None, prefix_steps: int
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"state": observation.state, "prompt": observation.instruction}
        for camera in self.camera_names:
            if camera not in observation.images:
                raise AloeError(f"policy {self.version} needs an image of camera '{camera}', the observation has none")
        images = {name: observation.images[camera] for camera, name in self.camera_names.items()}
        # openpi's servers of robots like ours (its AlohaInputs) read [3, h, w] and nothing else
        message["images"] = images if self._aloe else {name: image.transpose(2, 0, 1) for name, image in images.items()}
        if self._aloe:
            message["seed"] = seed
            if self.uses_task_state:
                message["object_state"], message["sim_state"] = observation.object_state, observation.sim_state
            if prefix is not None and len(prefix):
                message["prefix"], message["prefix_steps"] = np.asarray(prefix, np.float32), prefix_steps
        return message

    def _ask(self, frame: bytes) -> bytes | str:
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        try:
            self._connection.send(frame)
            return self._connection.recv(self.timeout)
        except ConnectionClosed as error:
            if not isinstance(error.__cause__, BlockingIOError):  # which is how SO_SNDTIMEO ends
                raise
            problem = "take the observation"
        except TimeoutError:
            problem = "answer"
        self.close()  # an answer that comes later must not be taken for the next one
        raise AloeError(f"policy server {self.url} did not {problem} within {self.timeout:g} s")

    def _chunk(self, answer: dict[str, Any]) -> np.ndarray:
        actions = answer.get("actions")
        if (
            not isinstance(actions, np.ndarray)
            or actions.ndim != 2
            or actions.shape[1] != self.robot.action_dim
            or not len(actions)
        ):
            found = actions.shape if isinstance(actions, np.ndarray) else type(actions).__name__
            raise AloeError(f"policy server {self.url}: 'actions' must be [H, {self.robot.action_dim}], not {found}")
        if not np.isfinite(actions).all():
            raise AloeError(f"policy server {self.url}: the chunk is not finite")
        return actions.astype(np.float32)


def load_policy(spec: str, robot: RobotDescription, device: str = "", **options: Any) -> RemotePolicy:
    """The policy `remote:ws://host:port` (`remote`: this machine); `options` as `RemotePolicy` takes them.

    What a server of openpi's does not say follows a `?`, as in `remote:ws://host:8000?cameras=overhead:cam_high,left_wrist&horizon=50&image_size=224`:
    cameras with their names at the server where those differ.

    Raises:
        AloeError: such an option is unknown or wrong, or `device` is given; otherwise see `RemotePolicy`.
    """
    if device:
        raise AloeError(f"'{spec}' computes where its server runs: give the device '{device}' to `aloe serve` there")
    url, _, query = spec.partition(":")[2].partition("?")
    options.setdefault("api_key", os.environ.get(API_KEY_VARIABLE, ""))
    return RemotePolicy(url or f"ws://127.0.0.1:{DEFAULT_PORT}", robot, **options, **_told(spec, query))


def _told(spec: str, query: str) -> dict[str, Any]:
    """The options of `RemotePolicy` in a URL's query."""
    told: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in ("cameras", "horizon", "image_size") or key in told:
            raise AloeError(f"'{spec}': '{key}' is unknown or there twice; known are cameras, horizon and image_size")
        if key == "cameras":
            pairs = [pair.partition(":") for pair in value.split(",")]
            told[key] = {camera: name or camera for camera, _, name in pairs}
        elif value.isascii() and value.isdigit() and 0 < int(value) < 10_000:
            told[key] = int(value)
        else:
            raise AloeError(f"'{spec}': {key} must be a whole number from 1 to 9999, not '{value}'")
    return told
