"""Step caches around the networks of one model, for one run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from sampler import InvalidSetting
from service.jobs.model import Generation
from service.jobs.step_cache import DeepCache as DeepCacheSettings
from service.jobs.step_cache import StepCache
from worker.networks.approximate.block_cache import block_cache
from worker.networks.approximate.deep_cache import DeepCache
from worker.networks.loading import AnyModels
from worker.networks.models import Models
from worker.networks.optimise import OptimisedNetwork

# Called after each step with the number of steps that are done; whether the run may resume there.
StepDone = Callable[[int], bool]


@contextmanager
def caching(models: AnyModels, generation: Generation, *, off: bool = False) -> Generator[StepDone]:
    """Calls of the denoisers inside use the cache that the generation asks for; direct calls of the networks too, if
    they are transformers.

    Where a run may resume the cache is emptied, so that one that does gives the same bytes.

    Args:
        off: leave the cache out, but call the same steps resumable.

    Raises:
        InvalidSetting: the networks cannot use it.
    """
    with ExitStack() as stack:
        forget = _nothing
        if generation.cache is not None and not off:
            forget = stack.enter_context(_used(models, generation.cache))

        def step_done(steps: int) -> bool:
            resumable = generation.can_resume_after(steps)
            if resumable:
                forget()
            return resumable

        yield step_done


def _nothing() -> None: ...


@contextmanager
def _used(models: AnyModels, cache: StepCache) -> Generator[Callable[[], None]]:
    """Yields a function that empties the cache."""
    if isinstance(models, Models) and isinstance(cache, DeepCacheSettings):
        with _deep_cache(models, cache) as forget:
            yield forget
    elif not isinstance(models, Models) and not isinstance(cache, DeepCacheSettings):
        with block_cache(models.transformers, cache) as forget:
            yield forget
    else:
        raise InvalidSetting(f"cache.name={cache.name}: family {models.entry.family} has no such cache; leave it out")


@contextmanager
def _deep_cache(models: Models, cache: DeepCacheSettings) -> Generator[Callable[[], None]]:
    networks: list[OptimisedNetwork] = [models.optimised_image_unet, models.optimised_video_unet]
    caches = [DeepCache(each.network, levels=cache.levels, interval=cache.interval) for each in networks]

    def forget() -> None:
        for each in caches:
            each.forget()

    for network, each in zip(networks, caches, strict=True):
        network.deep_cache = each
    try:
        yield forget
    finally:
        for network in networks:
            network.deep_cache = None
