"""How the networks of a model are stored and run: the part of a registry entry that says it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from service.catalog.family_components import REQUIRED_COMPONENTS, Family, is_transformer
from service.catalog.memory_options import MemoryOptions
from service.catalog.optimise import OptimiseOrAuto
from service.frozen_model import FrozenModel
from service.jobs.model import Quantise
from service.jobs.step_cache import CacheName

Dtype = Literal["float16", "bfloat16", "float32"]
UNET_CACHES: tuple[CacheName, ...] = ("deep-cache",)
TRANSFORMER_CACHES: tuple[CacheName, ...] = ("first-block", "taylorseer")


class NetworkOptions(FrozenModel):
    """`caches` and `quantise` are approximate, all others change results by rounding only."""

    family: Family
    dtype: Dtype = Field(default="float16", description="on a GPU; a CPU always runs float32")
    vae_dtype: Dtype | None = Field(
        default=None, description="of the autoencoder on a GPU; default: dtype, or what force_upcast in its config asks"
    )
    optimise: OptimiseOrAuto = Field(default=None, description="the switches, or auto: measured on each GPU")
    memory: MemoryOptions = MemoryOptions()
    caches: tuple[CacheName, ...] | None = Field(
        default=None, description="approximate: those that requests may choose; default: all of the family, []: none"
    )
    quantise: Quantise | None = Field(
        default=None,
        description="approximate, wan and cogvideox: float8-weights stores the transformers' weights in 8 bits, float8 "
        "also computes in them; a GPU of compute capability 8.9 or more, and torchao",
    )

    @model_validator(mode="after")
    def _check_approximations(self) -> Self:
        possible = _caches_of(self.family)
        if unknown := [name for name in self.caches or () if name not in possible]:
            raise ValueError(f"caches has {unknown[0]}; family {self.family} has {', '.join(possible)}")
        if self.quantise is not None and not is_transformer(self.family):
            families = " and ".join(family for family in REQUIRED_COMPONENTS if is_transformer(family))
            raise ValueError(
                f"quantise is for the linear layers of transformers, families {families}; most of a UNet is "
                "convolutions: delete quantise"
            )
        if self.quantise is not None and self.dtype != "bfloat16":
            raise ValueError(f"quantise rounds weights in bfloat16, and dtype is {self.dtype}; delete one of them")
        if self.memory.group_offload and (self.caches or self.quantise):
            name = "caches" if self.caches else "quantise"
            raise ValueError(
                f"{name} does not work with memory.group_offload, which copies the blocks in a fixed order, as they "
                "are; delete one of them"
            )
        return self

    @property
    def possible_caches(self) -> tuple[CacheName, ...]:
        """Those that a request may choose."""
        if self.memory.group_offload:
            return ()
        return _caches_of(self.family) if self.caches is None else self.caches


def _caches_of(family: Family) -> tuple[CacheName, ...]:
    return TRANSFORMER_CACHES if is_transformer(family) else UNET_CACHES
