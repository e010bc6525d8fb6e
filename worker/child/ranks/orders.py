"""Orders of rank 0 to the other ranks, through their pipes. Every order has one reply: None, or the exception.

Tensors that a call needs travel through torch.distributed, what a job needs once travels as bytes of `packing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from service.catalog.model_entry import ModelEntry
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation
from service.settings import LogFormat

if TYPE_CHECKING:
    import torch

NetworkName = Literal["image", "video"]


@dataclass(frozen=True)
class Place:
    """The first message: where a rank is. It has no reply."""

    rank: int
    ranks: int
    device: str
    log_format: LogFormat


@dataclass(frozen=True)
class Load:
    """Load a model."""

    entry: ModelEntry


@dataclass(frozen=True)
class Connect:
    """Meet the other ranks in the process group."""

    per_unit: int
    """Ranks that share the rows of a call, see `shares`."""


@dataclass(frozen=True)
class UseLoras:
    """Give the networks these LoRAs and no others."""

    loras: tuple[LoraUse, ...]


@dataclass(frozen=True)
class BeginJob:
    """Forget the calls of the job before."""

    first_frame: bytes | None = field(default=None, repr=False)
    """For SparseCtrl: what the video model keeps."""
    levels_kept: int = 0
    """Of the SparseCtrl network's residuals."""


@dataclass(frozen=True)
class Prepare:
    """The following calls of this number are of this network, with these texts and arguments."""

    number: int
    network: NetworkName
    shape: Sequence[int]
    """Of this rank's part of the input."""
    dtype: torch.dtype
    returns: bool
    arguments: bytes = field(repr=False)


@dataclass(frozen=True)
class NetworkCall:
    """Receive the input and call the network. The result is offered before the reply, if this rank returns it."""

    number: int
    timestep: float


@dataclass(frozen=True)
class BeginCaching:
    """Use the step cache that the generation asks for, until `EndCaching`."""

    generation: Generation


@dataclass(frozen=True)
class StepsDone:
    """As `worker.networks.caching.StepDone`."""

    steps: int


@dataclass(frozen=True)
class EndCaching:
    """Empty the step cache and use none."""


@dataclass(frozen=True)
class FreeMemory:
    """Give unused memory of the card back."""


Order = (
    Load | Connect | UseLoras | BeginJob | Prepare | NetworkCall | BeginCaching | StepsDone | EndCaching | FreeMemory
)
