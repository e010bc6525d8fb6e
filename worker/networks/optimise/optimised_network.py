"""A UNet with the optimisations of its registry entry, called with the texts of both CFG branches."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from service.catalog.optimise import Optimise
from service.jobs.context_windows import ContextWindows
from worker.networks.approximate.deep_cache import DeepCache
from worker.networks.context_windows import WindowedMotion
from worker.networks.optimise.attention_backend import AttentionSwitch
from worker.networks.optimise.compile_blocks import BlockCompiler, CompiledBlocks
from worker.networks.optimise.text_kv_cache import TextKVCache, Texts, cached_text, replace_text_attentions
from worker.networks.optimise.time_embedding_cache import TimeEmbeddingCache
from worker.networks.optimise.weight_memory import Strides, channels_last, restore_layout


class OptimisedNetwork:
    """Called as `network(x, timestep, encoder_hidden_states=texts)`, see `sampler.denoisers.GuidedDenoiser`.

    The optimisations, and `context_windows` for clips that are longer, are active in these calls only: direct calls of
    the UNet give what they gave before.

    Args:
        network: one of diffusers' UNets, or VideoCrafterUNet.
        optimise: which optimisations to use.
        text_kv_cache: may be shared with another network; what both project equally is then projected once.
        compiler: for `optimise.compile`; may be shared with another network.

    Attributes:
        deep_cache: for `network`, used while it is set; None by default, because it is no optimisation.
    """

    native_cfg = True

    def __init__(
        self, network: Any, optimise: Optimise, text_kv_cache: TextKVCache, compiler: BlockCompiler | None = None
    ) -> None:
        self.network = network
        self.deep_cache: DeepCache | None = None
        self._timesteps = dict[float, Tensor]()
        self._needs_text_per_frame = not hasattr(network, "transformer_in")  # 3D UNets repeat the text themselves
        self._motion = WindowedMotion(network)
        self._text_kv_cache = text_kv_cache
        self._text_attentions = replace_text_attentions(network) if optimise.cache_text_kv else []
        self._time_embeddings = TimeEmbeddingCache(network) if optimise.cache_time_embeds else None
        self._attention = AttentionSwitch(network)
        self._relaid = list[Strides]()  # weights whose layout `optimise.channels_last` has changed
        self._blocks: CompiledBlocks | None = None
        self.use(optimise, compiler)

    def use(self, optimise: Optimise, compiler: BlockCompiler | None = None) -> None:
        """Switch to other optimisations between two jobs; caches stay as they were chosen at first.

        Raises ConfigurationError as `AttentionSwitch`.
        """
        self._attention.use(optimise.attention_backend)
        if optimise.channels_last:
            self._relaid += channels_last(self.network)
        else:
            restore_layout(self._relaid)
            self._relaid.clear()
        if self._blocks is not None:
            self._blocks.discard()
        self._blocks = CompiledBlocks(self.network, compiler or BlockCompiler()) if optimise.compile else None

    def clear_caches(self) -> None:
        """To be called when weights have changed."""
        self._text_kv_cache.clear()
        if self._time_embeddings is not None:
            self._time_embeddings.clear()

    @property
    def config(self) -> Any:
        return self.network.config

    def __call__(
        self,
        x: Tensor,
        timestep: float,
        *,
        encoder_hidden_states: Texts,
        context_windows: ContextWindows | None = None,
        **network_args: Any,
    ) -> Any:
        text, timestep_tensor = self._text(encoder_hidden_states, x), self._timestep(timestep, x)

        def call_network() -> Any:
            with self._motion.active(context_windows, x.shape[2] if x.ndim == 5 else 1):
                return self.network(x, timestep_tensor, encoder_hidden_states=text, **network_args)

        def call() -> Any:
            return self._blocks.run(call_network) if self._blocks else call_network()

        cached_time = self._time_embeddings.active(timestep) if self._time_embeddings else nullcontext()
        cached = cached_text(self._text_attentions, self._text_kv_cache, encoder_hidden_states)
        with cached, cached_time, self._attention.active():
            return self.deep_cache.run(encoder_hidden_states, x, call) if self.deep_cache else call()

    def _text(self, texts: Texts, x: Tensor) -> Tensor:
        if self._text_attentions:
            return texts[0][:, :0]  # empty: every cross-attention has its keys and values already
        text = torch.cat(texts)
        if not self._needs_text_per_frame:
            return text
        frames = x.shape[2] if x.ndim == 5 else x.shape[0] // text.shape[0]
        return text.repeat_interleave(frames, dim=0)

    def _timestep(self, timestep: float, x: Tensor) -> Tensor:
        if timestep not in self._timesteps:  # filled on the device: uploading a number would synchronise with it
            # Whole timesteps as diffusers' schedulers make them; those of flow models would lose their fraction so.
            dtype = torch.int64 if isinstance(timestep, int) else torch.float32
            self._timesteps[timestep] = torch.full((), timestep, dtype=dtype, device=x.device)
        return self._timesteps[timestep]
