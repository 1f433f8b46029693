"""How the participants of short-lived commands are reached."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"


@contextmanager
def without_shared_memory() -> Iterator[None]:
    """A participant that is made in here is reached over UDP alone, unless the environment names its transports.

    Our choice: a command often starts as the one before it ends, and Fast DDS gives both the same port. The one that ends may then take away the file of
    shared memory that the other has just opened, which is sent nothing after that, for ever. Commands get small messages; nodes keep shared memory.
    """
    if TRANSPORTS in os.environ:
        yield
        return
    os.environ[TRANSPORTS] = "UDPv4"
    try:
        yield
    finally:
        del os.environ[TRANSPORTS]
