"""Step caches: in some calls of a network, what an earlier call computed stands for a part of it.

They save time and change the picture by more than rounding, so nothing but a request switches one on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from service.frozen_model import FrozenModel
from service.json_text import parse_json

CacheName = Literal["deep-cache", "first-block", "taylorseer"]
CACHES: tuple[CacheName, ...] = get_args(CacheName)


class DeepCache(FrozenModel):
    """For UNets (DeepCache, arXiv:2312.00858): after a whole call of a network its inner levels are not computed again;
    their result is kept, and the outer levels run."""

    name: Literal["deep-cache"]
    steps: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Steps that share a whole call, the first of each network in them. 1: the calls of one zig-zag",
    )
    interval: int | None = Field(
        default=None,
        ge=2,
        le=1000,
        exclude_if=lambda interval: interval is None,
        description="Among the calls in these steps, every n-th of a network is whole as well. Default: only the first",
    )
    levels: int = Field(default=1, ge=1, le=3, description="Outer levels, which run in every call; fewer are faster")


class FirstBlockCache(FrozenModel):
    """For transformers: if the first block says nearly the same as in the last whole call, the others are skipped, and
    what they added then is added again."""

    name: Literal["first-block"]
    threshold: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Largest change of what the first block adds, relative to what it added in the last whole call",
    )


class TaylorSeerCache(FrozenModel):
    """For transformers (TaylorSeer, arXiv:2503.06923): between whole steps the prediction is extrapolated."""

    name: Literal["taylorseer"]
    interval: int = Field(default=5, ge=2, le=20, description="Every n-th step is whole; the first three always are")
    order: int = Field(default=1, ge=1, le=3, description="Of the extrapolation: 1 is a straight line")


def _by_name(given: Any) -> Any:
    """A name alone, or an object as JSON text, as forms and command lines have it. Raises ValueError."""
    if not isinstance(given, str):
        return given
    if not given.lstrip().startswith("{"):
        return {"name": given}
    try:
        return parse_json(given)
    except ValueError as e:
        raise ValueError(f"the text is not valid JSON: {e}") from e


StepCache = Annotated[DeepCache | FirstBlockCache | TaylorSeerCache, Field(discriminator="name")]
StepCacheRequest = Annotated[StepCache, BeforeValidator(_by_name)]
