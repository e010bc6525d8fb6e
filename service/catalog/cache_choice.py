"""The step cache of a generation: what the request asks for, checked against the model and the sampler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from service.catalog.weight_files import Component
from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.step_cache import CacheName, DeepCache, StepCache, TaylorSeerCache

ZIGZAGS = ("iv-mixed", "zigzag")  # samplers that call a network several times in a step
UNETS = ("unet", "image_unet")


def add_cache(
    generation: Generation,
    cache: StepCache | None,
    *,
    possible: Sequence[CacheName],
    components: Mapping[str, Component],
) -> Generation:
    """Return the generation with the request's cache, or unchanged if it has none.

    Args:
        possible: what the model has.
        components: of the model.

    Raises:
        InvalidParameter: the model or the sampler cannot use it, or it would change nothing.
    """
    if cache is None:
        return generation
    if cache.name not in possible:
        there_is = f"it has {', '.join(possible)}" if possible else "it has none; leave out 'cache'"
        raise InvalidParameter("cache.name", f"Model '{generation.model}' has no cache '{cache.name}'; {there_is}.")
    name = generation.sampler.name
    if name == "official":
        message = "Sampler 'official' runs the released code, which has no cache; leave out 'cache', or use iv-mixed."
        raise InvalidParameter("cache.name", message)
    if isinstance(cache, TaylorSeerCache) and name in ZIGZAGS:
        message = f"Cache 'taylorseer' extrapolates from step to step, but sampler '{name}' also goes back; use "
        raise InvalidParameter("cache.name", f"{message}first-block.")
    if isinstance(cache, DeepCache):
        _check_deep_cache(cache, generation, components)
    return generation.model_copy(update={"cache": cache})


def _check_deep_cache(cache: DeepCache, generation: Generation, components: Mapping[str, Component]) -> None:
    name = generation.sampler.name
    if cache.steps == 1 and name not in ZIGZAGS:
        message = f"cache.steps=1: sampler '{name}' calls each network once in a step, so that nothing would be reused"
        raise InvalidParameter("cache.steps", f"{message}; use 2 or more.")
    known = (_levels(components[name]) for name in UNETS if name in components)
    fewest = min((levels for levels in known if levels is not None), default=None)
    if fewest is not None and cache.levels >= fewest:
        message = f"cache.levels={cache.levels}: a network of model '{generation.model}' has {fewest} levels, of which "
        raise InvalidParameter("cache.levels", f"{message}one at least is cached; use {fewest - 1} or less.")


def _levels(unet: Component) -> int | None:
    """As the config says; None where it does not: the worker knows it then."""
    try:
        found = None if unet.path is None else json.loads((unet.path / "config.json").read_text())
    except (OSError, ValueError):
        return None
    widths = cast("dict[str, Any]", found).get("block_out_channels") if isinstance(found, dict) else None
    return len(cast("list[int]", widths)) if isinstance(widths, list) else None
