"""Other optimisations for networks that are loaded already."""

from __future__ import annotations

from dataclasses import replace

from service.catalog.optimise import Optimise
from worker.networks.loading import AnyModels
from worker.networks.optimise import BlockCompiler


def reconfigured(models: AnyModels, optimise: Optimise) -> tuple[AnyModels, BlockCompiler | None]:
    """The same networks, which take the place of `models`, and what compiles them at their first call. Caches of texts
    and time embeddings stay as they were chosen when the model was loaded.

    Raises ConfigurationError if a network or this machine has no such attention backend.
    """
    compiler = BlockCompiler.of(optimise)
    for network in models.optimised_networks:
        network.use(optimise, compiler)
    return replace(models, optimise=optimise), compiler
