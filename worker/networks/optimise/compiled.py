"""torch.compile of the blocks that repeat through a network: small graphs, compiled once per shape, kept on disk.

The rest of the network stays as it is, and so does what plain callers get: only a call under way runs compiled blocks.
Results differ by rounding only. Where compiling fails, whatever the reason, the blocks run as they always did.
"""

# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false
from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config as dynamo
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from worker.networks.optimise.call import Call

log = logging.getLogger("ivmix.child")

# By class of the UNet; the outermost of these are compiled. diffusers' own lists are shorter, or missing (0.42.1).
SPATIAL = ("ResnetBlock2D", "BasicTransformerBlock")
BLOCKS = {
    "UNet2DConditionModel": SPATIAL,
    "UNetMotionModel": (*SPATIAL, "AnimateDiffTransformer3D"),
    "UNet3DConditionModel": (*SPATIAL, "TemporalConvLayer", "TransformerTemporalModel"),
}
# Variants of one block: widths and heights of all levels, times the sizes and lengths of clips that a worker meets.
# torch's own limit of 8 is passed by a single UNet, which would then go on uncompiled.
VARIANTS = 256
CACHE_VARIABLE, DEFAULT_CACHE = "TORCHINDUCTOR_CACHE_DIR", default_cache_dir()
SHOWN = 300  # characters of a compiler's complaint


class Compiler:
    """One for all networks of a model: where one fails to compile, the others are not tried, and one warning is enough.

    `cache`: the folder where compiled kernels outlive the process, unless TORCHINDUCTOR_CACHE_DIR names another;
    None: torch's default, a temporary folder.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor", cache: Path | None = None) -> None:
        self.backend, self.gave_up = backend, False
        if cache is not None:
            _keep_in(cache)

    def compile(self, unet: Any, call: Call) -> int:
        """Prepare a UNet's blocks, to be compiled at their first use while a call is under way; how many there are."""
        dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * VARIANTS)
        # Blocks of one shape share their code; without this the first block, where `halves.py` has hooks, would be run
        # by the code of another one, and both halves computed.
        dynamo.skip_nnmodule_hook_guards = False
        found = list(blocks(unet))
        for block in found:
            self._compile(block, call)
        return len(found)

    def _compile(self, block: nn.Module, call: Call) -> None:
        plainly: Callable[..., Any] = block.forward

        @functools.cache  # not before it is used: this loads the backend, which may be what fails
        def compiled() -> Callable[..., Any]:
            # dynamic=False: that blocks differ in width is no reason to compile them for any size
            return torch.compile(plainly, backend=self.backend, dynamic=False)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.gave_up or call.timestep is None:
                return plainly(*args, **kwargs)
            try:
                return compiled()(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise  # the engine knows what to do
            except Exception as e:  # of compilers, backends and drivers; what is the block's own is raised again below
                self.gave_up = True
                reason = " ".join(str(e).split())[:SHOWN]
                log.warning("going on without torch.compile: %s: %s", type(e).__name__, reason)
            return plainly(*args, **kwargs)

        block.forward = forward


def _keep_in(cache: Path) -> None:
    # torch sets it to its own default as soon as dynamo is imported
    if os.environ.get(CACHE_VARIABLE, DEFAULT_CACHE) != DEFAULT_CACHE:
        return
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run
    except OSError as e:
        log.warning("compiled kernels are not kept for the next start: %s", e)
    else:
        os.environ[CACHE_VARIABLE] = str(cache)  # also told to the processes that compile


def blocks(unet: Any) -> Iterator[nn.Module]:
    """In the order of the network's parts; none for a class of UNet that is not known."""
    kinds = BLOCKS.get(type(unet).__name__, ())

    def outermost(module: nn.Module) -> Iterator[nn.Module]:
        if type(module).__name__ in kinds:
            yield module
        else:
            for child in module.children():
                yield from outermost(child)

    return outermost(unet)
