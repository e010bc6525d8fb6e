"""A further rank, as `worker.child.ranks` runs it, whose networks run out of memory.

While the file named by RANK_ROOM exists, above as many frames in one call as it says. If it says "broken", no model can
be loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from worker.child.ranks.__main__ import main
from worker.child.ranks.follower import Follower, PreparedCall

output, load = PreparedCall.output, Follower._load


def limited(call: PreparedCall, timestep: float) -> Tensor:
    room, x = Path(os.environ["RANK_ROOM"]), call.x
    frames = x.shape[0] * (x.shape[2] if x.ndim == 5 else 1)
    if room.exists() and frames > int(room.read_text()):
        raise torch.OutOfMemoryError(f"tried to allocate {frames} frames")
    return output(call, timestep)


def broken(follower: Follower, entry: ModelEntry) -> None:
    room = Path(os.environ["RANK_ROOM"])
    if room.exists() and room.read_text() == "broken":
        raise ConfigurationError("the file is broken")
    load(follower, entry)


if __name__ == "__main__":
    Follower._load = broken  # type: ignore[method-assign]
    PreparedCall.output = limited  # type: ignore[method-assign]
    main(*map(int, sys.argv[1:]))
