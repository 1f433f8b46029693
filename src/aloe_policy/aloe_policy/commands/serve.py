"""`aloe serve`: a policy over a socket."""

from __future__ import annotations

from typing import Annotated

import tyro


def serve(
    policy: Annotated[str, tyro.conf.Positional],
    /,
    robot: str = "aloha_sim",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "",
    threads: int = 1,
) -> None:
    """Serve a policy to other machines over openpi's websocket protocol (`--policy remote:ws://HOST:PORT` asks it).

    When the environment variable ALOE_API_KEY is set, clients must know it.

    Args:
        policy: checkpoint folder, or the name of a policy.
        robot: name or file of the description of the robot that the policy was made for, e.g. my_robot.yaml.
        host: address to listen on; 0.0.0.0 for all: then set ALOE_API_KEY.
        port: port to listen on; 0 takes a free one.
        device: cpu, cuda, cuda:1; empty takes the policy's default.
        threads: CPU threads of the numerical library.
    """
    import logging
    import os

    import torch

    from aloe_core.policy import load_policy
    from aloe_core.robot import load_robot
    from aloe_policy.remote import API_KEY_VARIABLE
    from aloe_policy.server import PolicyServer

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    description = load_robot(robot)
    served = load_policy(policy, description, **({"device": device} if device else {}))
    server = PolicyServer(served, description, host, port, os.environ.get(API_KEY_VARIABLE, ""))
    print(f"policy {served.version} answers on ws://{host}:{server.port}", flush=True)
    server.run()
