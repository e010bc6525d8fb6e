"""The switches of an entry that trade time for memory on a GPU."""

from __future__ import annotations

from pydantic import Field

from service.frozen_model import FrozenModel


class MemoryOptions(FrozenModel):
    """How a large model fits a card. Each changes results by rounding only, tiles also by their blended seams."""

    halves_apart: bool = Field(
        default=False, description="call the network once for each half of guidance, which halves its activations"
    )
    tiling: bool = Field(default=False, description="always decode in tiles, not only where memory runs out")
    group_offload: bool = Field(
        default=False,
        description="keep the transformer's blocks in the host's memory, and copy each to the GPU while the one before "
        "it computes",
    )
