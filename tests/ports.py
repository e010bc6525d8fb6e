"""Ports for servers that tests start."""

from __future__ import annotations

import itertools
import os
import random

from service.process.embedded_valkey import stable_port

# Below the range of outgoing connections (32768 on Linux) and of `stable_port`: between the choice and the start of a
# server, which imports for seconds, no connection of another test may get the port.
FIRST, PER_PROCESS = 10000, 1000
_SLOT = int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")) % 10
_offsets = itertools.count(random.randrange(PER_PROCESS))


def free_port() -> int:
    """A free port on loopback that no other test process chooses, and this one not soon again."""
    offsets = itertools.islice(_offsets, PER_PROCESS)
    return stable_port(FIRST + _SLOT * PER_PROCESS + offset % PER_PROCESS for offset in offsets)
