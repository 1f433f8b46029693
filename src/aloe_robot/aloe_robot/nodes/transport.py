"""How the participants of short-lived commands are reached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RANGE, TRANSPORTS = "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_BUILTIN_TRANSPORTS"
PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # until Jazzy, and from Kilted on
LOOPBACK = Path(__file__).with_name("loopback.xml")


@contextmanager
def without_shared_memory() -> Iterator[None]:
    """A participant that is made in here is reached over UDP alone, by whom `ROS_AUTOMATIC_DISCOVERY_RANGE` says; one that Fast DDS's own variables describe is
    left as they say.

    Our choice: a command often starts as the one before it ends, and Fast DDS gives both the same port in shared memory. While the old one leaves, a node may
    take its port for a dead one's and make it anew; the other nodes go on sending into the old one. Then nothing reaches the new command, nor those that
    follow it on this port. Commands get small messages; nodes keep shared memory.
    """
    if TRANSPORTS in os.environ or any(name in os.environ for name in PROFILES):
        yield
        return
    changed = {TRANSPORTS: "UDPv4"}
    if (
        os.environ.get(RANGE) == "LOCALHOST"
    ):  # for which rmw_fastrtps sets transports of its own, whatever `TRANSPORTS` says
        changed = {RANGE: "SYSTEM_DEFAULT", **dict.fromkeys(PROFILES, str(LOOPBACK))}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
