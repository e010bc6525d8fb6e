"""Cross-attention to the prompt: keys and values are computed once per job, and all frames of a clip share them.

The text does not change during a job, so neither do its keys and values. Queries are independent of each other, so the
queries of all frames can form one long row. Results differ from diffusers' processors by rounding only.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

Texts = tuple[Tensor, ...]  # one per CFG branch, (B, tokens, dim)

# Parts of diffusers' Attention that `CachedTextAttention` does not compute.
UNSUPPORTED_PARTS = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")


class TextKVCache:
    """Keys and values by attention weights and texts, (rows, heads, tokens, width) each.

    Networks that share weights and texts share the entries.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, ...], tuple[Texts, Tensor, Tensor]] = {}  # holding the texts reserves their ids

    def get(self, attn: Any, texts: Texts) -> tuple[Tensor, Tensor]:
        key = (id(attn.to_k.weight), id(attn.to_v.weight), *map(id, texts))
        if key not in self._entries:
            text = torch.cat(texts)
            keys, values = (_split_heads(project(text), attn.heads) for project in (attn.to_k, attn.to_v))
            self._entries[key] = (texts, keys, values)
        return self._entries[key][1:]

    def clear(self) -> None:
        self._entries.clear()

    @property
    def size_bytes(self) -> int:
        return sum(x.nbytes for _, *pair in self._entries.values() for x in pair)

    def __len__(self) -> int:
        return len(self._entries)


class CachedTextAttention:
    """Attention processor that uses `key_value` where it is set, else the processor it replaces.

    `key_value` is set before a call rather than looked up within it, so that it is an input of a compiled block.
    """

    def __init__(self, attn: Any) -> None:
        self.attn, self.replaced = attn, attn.processor
        self.key_value: tuple[Tensor, Tensor] | None = None
        self.uses_matmul = isinstance(self.replaced, AttnProcessor)  # see cpu_tuning
        attn.set_processor(self)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if self.key_value is None:
            return self.replaced(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        key, value = self.key_value
        rows, (batch, length, _) = len(key), hidden_states.shape
        query = attn.to_q(hidden_states)
        query = _split_heads(query.view(rows, batch // rows * length, -1), attn.heads)  # all frames of a clip in a row
        if self.uses_matmul:
            attended = torch.matmul(torch.matmul(query, key.transpose(-1, -2)).mul_(attn.scale).softmax(-1), value)
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(batch, length, -1)
        return attn.to_out[0](attended) / attn.rescale_output_factor  # to_out[1] is a dropout, used in training only


def replace_text_attentions(unet: Any) -> list[CachedTextAttention]:
    """Replace the processor of every cross-attention; of none, if one has parts that are not computed here."""
    found = [
        module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith(".attn2") and module.is_cross_attention
    ]
    if any(getattr(attn, part, None) for attn in found for part in UNSUPPORTED_PARTS):
        return []
    return [CachedTextAttention(attn) for attn in found]


@contextmanager
def cached_text(attentions: Sequence[CachedTextAttention], cache: TextKVCache, texts: Texts) -> Generator[None]:
    """Use the cached keys and values of `texts` in every call of the UNet inside."""
    for attention in attentions:
        attention.key_value = cache.get(attention.attn, texts)
    try:
        yield
    finally:
        for attention in attentions:
            attention.key_value = None


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, length, heads * width) -> (rows, heads, length, width)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
