"""torch.compile of a UNet's repeated blocks: small graphs, compiled once per shape, with kernels cached on disk."""

# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false, reportPrivateUsage=false
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config as dynamo
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from service.catalog.optimise import Optimise
from service.settings import load_settings

log = logging.getLogger("ivmix.child")

# Class names of the compiled modules. diffusers 0.42.1 has a list for UNet2DConditionModel only, without the ResNets.
REPEATED_BLOCKS = [
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "TemporalConvLayer",
    "WanTransformerBlock",
    "CogVideoXBlock",
]
# All blocks share the limits, with a variant per width, level, and size and length of clip; above the limit torch runs
# uncompiled. A single UNet exceeds torch's default of 8.
RECOMPILE_LIMIT = 1024
CACHE_DIR_VARIABLE, DEFAULT_CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR", default_cache_dir()
MAX_REASON_LENGTH = 300


class BlockCompiler:
    """Compiles the networks of one model. If one fails to compile, none is compiled, and one warning is logged.

    Args:
        backend: a torch.compile backend, by name or as a callable.
        cache_dir: where compiled kernels are kept for later processes, unless TORCHINDUCTOR_CACHE_DIR is set.
            None: torch's default, a temporary folder.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor", cache_dir: Path | None = None) -> None:
        self.backend, self.problem = backend, ""
        if cache_dir is not None:
            _use_cache_dir(cache_dir)

    @classmethod
    def of(cls, optimise: Optimise) -> BlockCompiler | None:
        """One that keeps its kernels in IVMIX_DATA_DIR; None if the networks are not compiled."""
        return cls(cache_dir=load_settings().data_dir / "compiled") if optimise.compile else None

    @property
    def has_failed(self) -> bool:
        return bool(self.problem)

    def fail(self, reason: str) -> None:
        self.problem = reason
        log.warning("continuing without torch.compile: %s", reason)


class CompiledBlocks:
    """The blocks of one UNet, compiled at their first use inside `run`; direct calls of the UNet stay uncompiled."""

    def __init__(self, unet: Any, compiler: BlockCompiler) -> None:
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, RECOMPILE_LIMIT)
        self._compiler = compiler
        unet._repeated_blocks = REPEATED_BLOCKS
        # dynamic=False: blocks of different widths are no reason to compile them for any size
        unet.compile_repeated_blocks(backend=compiler.backend, dynamic=False)
        compiled = ((module, module._compiled_call_impl) for module in unet.modules())
        self.compiled = [(module, call) for module, call in compiled if call is not None]
        self._set_compiled(on=False)

    def discard(self) -> None:
        """The blocks stay uncompiled, and what was compiled is forgotten: kernels of attention are compiled into it."""
        for module, _ in self.compiled:
            module._compiled_call_impl = None
        torch._dynamo.reset()

    def run(self, call: Callable[[], Any]) -> Any:
        """`call()` with compiled blocks; without them if that fails for any reason except missing memory."""
        if self._compiler.has_failed:
            return call()
        try:
            with self._active():
                return call()
        except torch.OutOfMemoryError:
            raise  # the engine continues in low-memory mode
        except Exception as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:MAX_REASON_LENGTH]}"
        result = call()  # raises again what is not the compiler's fault
        self._compiler.fail(reason)
        return result

    @contextmanager
    def _active(self) -> Generator[None]:
        self._set_compiled(on=True)
        try:
            yield
        finally:
            self._set_compiled(on=False)

    def _set_compiled(self, *, on: bool) -> None:
        for module, compiled_call in self.compiled:
            module._compiled_call_impl = compiled_call if on else None


def _use_cache_dir(cache_dir: Path) -> None:
    # torch sets the variable to its default as soon as dynamo is imported
    if os.environ.get(CACHE_DIR_VARIABLE, DEFAULT_CACHE_DIR) != DEFAULT_CACHE_DIR:
        return
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # its content is executed
    except OSError as e:
        log.warning("compiled kernels are not kept for later processes: %s", e)
    else:
        os.environ[CACHE_DIR_VARIABLE] = str(cache_dir)  # an environment variable reaches torch's compile processes
