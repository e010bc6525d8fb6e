"""Ports for servers that tests start."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below the range of outgoing connections (32768 on Linux) and of `stable_port`: between the choice and the start of a
# server, which imports for seconds, no connection of another test may get the port.
FIRST, PER_PROCESS = 10000, 1000
_SLOT = int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")) % 10
_offsets = itertools.count(random.randrange(PER_PROCESS))


def free_port() -> int:
    """A free port on loopback that no other test process chooses, and this one not soon again."""
    for offset in itertools.islice(_offsets, PER_PROCESS):
        port = FIRST + _SLOT * PER_PROCESS + offset % PER_PROCESS
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port for a test server")
