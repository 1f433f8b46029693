"""Serves any chunk policy over openpi's websocket protocol, so that it can run on another machine than the robot.

On connection the server sends its metadata; then each observation gets `{"actions": [H, A]}`. A text frame is an error, in a sentence.
An observation is `{"state": [A], "images": {camera: uint8 [h, w, 3] or [3, h, w]}, "prompt": str}`, and from `RemotePolicy` also
`object_state`, `sim_state`, `seed`, `prefix`, `prefix_steps`.
"""

from __future__ import annotations

import hmac
import http
import logging
import threading
import time
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from aloe_core.errors import AloeError
from aloe_core.observation import Observation, decode_image
from aloe_core.policy import ChunkPolicy
from aloe_core.robot import RobotDescription
from aloe_policy.wire import DEFAULT_PORT, MAX_FRAME_BYTES, pack, unpack

logger = logging.getLogger(__name__)
MAX_PROMPT = 2000  # characters; our choice: no instruction is longer, and each one is encoded


class PolicyServer:
    """Answers on a socket until `close`; one thread per client, one inference at a time.

    Args:
        policy: any chunk policy.
        robot: the robot it drives.
        host: address to listen on; the default is reachable from this machine only.
        port: 0 takes a free one, see `port`.
        api_key: clients must send it as `Authorization: Api-Key ...`; empty: anybody may ask.
        seed: of the randomness of answers to clients that send none.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        robot: RobotDescription,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        api_key: str = "",
        seed: int = 0,
    ) -> None:
        """Raises `AloeError` when the address cannot be used."""
        self.policy, self.robot, self.api_key = policy, robot, api_key
        self._random = np.random.default_rng(seed)
        self._inference = threading.Lock()
        self._metadata = pack({"aloe": describe(policy, robot)})
        try:
            self._server: Server = serve(
                self._serve_client,
                host,
                port,
                process_request=self._admit,
                max_size=MAX_FRAME_BYTES,
                compression=None,  # images do not shrink, and it costs milliseconds
            )
        except (OSError, OverflowError) as error:
            raise AloeError(f"cannot listen on {host}:{port}: {error}") from None
        self.port: int = self._server.socket.getsockname()[1]

    def run(self) -> None:
        """Blocks until `close` is called from another thread, or an interrupt."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        sent = request.headers.get("Authorization", "")
        if self.api_key and not hmac.compare_digest(sent.encode(), f"Api-Key {self.api_key}".encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "this server needs an API key\n")
        return None

    def _serve_client(self, connection: ServerConnection) -> None:
        peer = "{}:{}".format(*connection.remote_address[:2])
        logger.info("%s connected", peer)
        try:
            connection.send(self._metadata)
            for frame in connection:
                try:
                    message = unpack(frame, "observation")
                except AloeError as error:
                    logger.warning("%s: %s", peer, error)
                    connection.send(str(error))
                    connection.close(CloseCode.INVALID_DATA, "malformed frame")
                    return
                try:
                    connection.send(self._answer(message))
                except AloeError as error:
                    logger.warning("%s: %s", peer, error)
                    connection.send(str(error))
        except ConnectionClosed:
            pass
        logger.info("%s left", peer)

    def _answer(self, message: dict[str, Any]) -> bytes:
        observation = observation_from(message, self.policy, self.robot)
        prefix, prefix_steps = message.get("prefix"), message.get("prefix_steps", 0)
        if prefix is not None:
            prefix = _array(message, "prefix", (None, self.robot.action_dim))
        known = 0 if prefix is None else min(len(prefix), self.policy.horizon)
        if type(prefix_steps) is not int or not 0 <= prefix_steps <= known:
            raise AloeError(
                f"observation: 'prefix_steps' must be a whole number from 0 to {known}, the rows of 'prefix'"
            )
        seed = message.get("seed")
        generator = self._random if not isinstance(seed, int) or seed < 0 else np.random.default_rng(seed)
        with self._inference:
            began = time.perf_counter()
            chunk = self.policy.propose(observation, generator, prefix, prefix_steps)
            infer_ms = (time.perf_counter() - began) * 1e3
        return pack({"actions": np.asarray(chunk, np.float32), "server_timing": {"infer_ms": infer_ms}})


def describe(policy: ChunkPolicy, robot: RobotDescription) -> dict[str, Any]:
    """What `RemotePolicy` needs to know of the policy behind the socket."""
    return {
        "version": policy.version,
        "horizon": policy.horizon,
        "cameras": list(policy.cameras),
        "image_size": list(policy.image_size) if policy.image_size else None,
        "uses_task_state": policy.uses_task_state,
        "action_names": list(robot.action_names),
        "robot_hash": robot.hash,
    }


def observation_from(message: dict[str, Any], policy: ChunkPolicy, robot: RobotDescription) -> Observation:
    """The observation in a frame.

    Raises:
        AloeError: a value is missing, of another type or shape, too long or not finite; the message names its key.
    """
    images = message.get("images", {})
    if not isinstance(images, dict):
        raise AloeError("observation: 'images' is not a mapping of camera to image")
    seen = {}
    for camera in policy.cameras:
        image = images.get(camera)
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or 3 not in (image.shape[0], image.shape[2])
        ):
            raise AloeError(f"observation: 'images/{camera}' is missing, or not uint8 [h, w, 3]")
        if image.shape[2] != 3:
            image = image.transpose(1, 2, 0)
        if 0 in image.shape:
            raise AloeError(f"observation: 'images/{camera}' is empty")
        seen[camera] = decode_image(np.ascontiguousarray(image), policy.image_size, f"images/{camera}")
    prompt = message.get("prompt", "")
    if not isinstance(prompt, str):
        raise AloeError("observation: 'prompt' is not a text")
    if len(prompt) > MAX_PROMPT:
        raise AloeError(f"observation: 'prompt' has {len(prompt)} characters, more than {MAX_PROMPT}")
    task = {key: _array(message, key, (None,)) for key in ("object_state", "sim_state") if message.get(key) is not None}
    return Observation(
        stamp_ns=0,
        state=_array(message, "state", (robot.action_dim,)).astype(np.float32),
        images=seen,
        instruction=prompt,
        object_state=task["object_state"].astype(np.float32) if "object_state" in task else None,
        sim_state=task["sim_state"].astype(np.float64) if "sim_state" in task else None,
    )


def _array(message: dict[str, Any], key: str, shape: tuple[int | None, ...]) -> np.ndarray:
    value = message.get(key)
    wanted = " x ".join("n" if n is None else str(n) for n in shape)
    if not isinstance(value, np.ndarray):
        raise AloeError(f"observation: '{key}' must be an array of {wanted} numbers, there is none")
    if value.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
        raise AloeError(f"observation: '{key}' must be an array of {wanted} numbers, not one of shape {value.shape}")
    if not np.isfinite(value).all():
        raise AloeError(f"observation: '{key}' is not finite")
    return value
