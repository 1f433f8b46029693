"""RemotePolicy: a policy on another machine, over openpi's websocket protocol; ours (`aloe serve`) or openpi's own server."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

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
        timeout: longest wait for a connection or an answer [s].
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
        """Raises `AloeError` when there is no server, or one for another robot."""
        self.url, self.robot, self.timeout = url, robot, timeout
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._connection: ClientConnection | None = None
        self._open = ExitStack()  # closes the connection
        self._aloe = False
        self.version, self.horizon = f"remote-{url}", horizon
        self.camera_names = cameras or {}
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
        self._connection = connection
        try:
            metadata = unpack(connection.recv(self.timeout), f"policy server {self.url}")
        except (TimeoutError, ConnectionClosed):
            self.close()
            raise AloeError(f"policy server {self.url} said nothing within {self.timeout:g} s of connecting") from None
        if isinstance(metadata.get("aloe"), dict):
            self._adopt(metadata["aloe"])

    def _adopt(self, facts: dict[str, Any]) -> None:
        """Takes over what one of our own servers says of its policy."""
        names = facts.get("action_names")
        if names != list(self.robot.action_names):
            self.close()
            raise AloeError(
                f"policy server {self.url} drives joints {names}, robot '{self.robot.name}' has {list(self.robot.action_names)}"
            )
        robot_hash = facts.get("robot_hash")
        if robot_hash and robot_hash != self.robot.hash:
            self.close()
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
            self.close()
            raise AloeError(f"policy server {self.url} describes itself wrongly: {error!r}") from None
        self._aloe = True

    def _message(
        self, observation: Observation, seed: int, prefix: np.ndarray | None, prefix_steps: int
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"state": observation.state, "prompt": observation.instruction}
        for camera in self.camera_names:
            if camera not in observation.images:
                raise AloeError(f"policy {self.version} needs an image of camera '{camera}', the observation has none")
        message["images"] = {name: observation.images[camera] for camera, name in self.camera_names.items()}
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
        self._connection.send(frame)
        try:
            return self._connection.recv(self.timeout)
        except TimeoutError:
            self.close()  # an answer that comes later must not be taken for the next one
            raise AloeError(f"policy server {self.url} did not answer within {self.timeout:g} s") from None

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


def load_policy(spec: str, robot: RobotDescription, **options: Any) -> RemotePolicy:
    """The policy `remote:ws://host:port` (`remote`: this machine); `options` as `RemotePolicy` takes them.

    Raises:
        AloeError: see `RemotePolicy`.
    """
    url = spec.partition(":")[2] or f"ws://127.0.0.1:{DEFAULT_PORT}"
    options.setdefault("api_key", os.environ.get(API_KEY_VARIABLE, ""))
    return RemotePolicy(url, robot, **options)
