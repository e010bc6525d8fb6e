"""Cross-attention to a text: its keys and values are computed once per job, and frames share them unrepeated.

A text does not change during a job, so neither do its keys and values; and queries do not see each other, so the
queries of all frames of a clip can be one long row. Results differ from the plain path by rounding only.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from worker.networks.optimise.call import Texts

UNKNOWN_PARTS = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")


class TextKeys:
    """Keys and values by weights and text, (rows, heads, tokens, width) each: networks that share both share them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[Texts, Tensor, Tensor]] = {}  # the texts keep their ids taken

    def of(self, attn: Any, texts: Texts) -> tuple[Tensor, Tensor]:
        name = (id(attn.to_k.weight), id(attn.to_v.weight), *map(id, texts))
        if name not in self._known:
            text = torch.cat(texts)
            self._known[name] = (texts, _heads(attn.to_k(text), attn.heads), _heads(attn.to_v(text), attn.heads))
        _, key, value = self._known[name]
        return key, value

    def forget(self) -> None:
        """A new job has new texts."""
        self._known.clear()

    @property
    def size_bytes(self) -> int:
        return sum(part.nbytes for _, *parts in self._known.values() for part in parts)

    def __len__(self) -> int:
        return len(self._known)


class TextAttention:
    """In place of an attention processor; `plain` is the one that was there, for every other use.

    What it needs is laid ready before a call, not looked up within it: so a compiled block has it as an input.
    """

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        self.known: tuple[Tensor, Tensor] | None = None  # keys and values of the texts of the call under way
        self.by_products = isinstance(plain, AttnProcessor)  # `cpu.prepare` has chosen so

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if self.known is None:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        key, value = self.known
        rows, (batch, length, _) = len(key), hidden_states.shape
        query = attn.to_q(hidden_states)
        query = _heads(query.view(rows, batch // rows * length, -1), attn.heads)  # the frames of a clip in one row
        if self.by_products:
            seen = torch.matmul(torch.matmul(query, key.transpose(-1, -2)).mul_(attn.scale).softmax(-1), value)
        else:
            seen = F.scaled_dot_product_attention(query, key, value)
        seen = seen.transpose(1, 2).reshape(batch, length, -1)
        return attn.to_out[0](seen) / attn.rescale_output_factor  # to_out[1] is a dropout, of training


class TextReading:
    """The cross-attentions of one network."""

    def __init__(self, attentions: list[Any], keys: TextKeys) -> None:
        self.keys = keys
        self._pairs = [(attn, TextAttention(attn.processor)) for attn in attentions]
        for attn, processor in self._pairs:
            attn.set_processor(processor)

    @contextmanager
    def under_way(self, texts: Texts) -> Generator[None]:
        for attn, processor in self._pairs:
            processor.known = self.keys.of(attn, texts)
        try:
            yield
        finally:
            for _, processor in self._pairs:
                processor.known = None


def read_text_once(unet: Any, keys: TextKeys) -> TextReading | None:
    """Install it in every cross-attention; None, and nothing is changed, if one of them does more than these do."""
    found = [
        module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith(".attn2") and module.is_cross_attention
    ]
    if not found or any(getattr(attn, part, None) for attn in found for part in UNKNOWN_PARTS):
        return None
    return TextReading(found, keys)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(rows, length, heads * width) -> (rows, heads, length, width)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
