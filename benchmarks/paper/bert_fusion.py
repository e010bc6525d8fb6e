"""The text half of UMT: BERT, whose upper layers also attend to the patches of a clip.

The lower layers encode the text alone, the upper ones fuse. Names and shapes of parameters are those of the original
(`text_encoder` of github.com/OpenGVLab/unmasked_teacher), in which BERT has no pooling layer. ivmix cannot use
transformers' BERT: there every layer of a model has cross-attention or none has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.errors import BenchmarkError


@dataclass(frozen=True)
class BertSizes:
    """Of BERT-large, uncased."""

    width: int = 1024
    layers: int = 24
    first_fusion_layer: int = 19
    heads: int = 16
    inner: int = 4096
    vocabulary: int = 30522
    positions: int = 512


class BertFusion(nn.Module):
    def __init__(self, sizes: BertSizes, vision_width: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = Embeddings(sizes)
        layers = [
            Layer(sizes, vision_width if index >= sizes.first_fusion_layer else None) for index in range(sizes.layers)
        ]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def encode(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        """Ids (B, L) and a bool mask (B, L), False for padding -> (B, L, width)."""
        if tokens.shape[1] > self.sizes.positions:
            raise BenchmarkError(f"a text has {tokens.shape[1]} tokens, at most {self.sizes.positions}; truncate it")
        hidden = self.embeddings(tokens)
        for layer in self._layers()[: self.sizes.first_fusion_layer]:
            hidden = layer(hidden, is_token)
        return hidden

    def fuse(self, text: Tensor, is_token: Tensor, patches: Tensor) -> Tensor:
        """Encoded text (B, L, width) and patches (B, N, vision width) -> (B, L, width)."""
        for layer in self._layers()[self.sizes.first_fusion_layer :]:
            text = layer(text, is_token, patches)
        return text

    def _layers(self) -> list[Layer]:
        return list(self.encoder["layer"])  # pyright: ignore[reportArgumentType]  # ModuleDict does not know its types


class Embeddings(nn.Module):
    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.width)
        self.token_type_embeddings = nn.Embedding(2, sizes.width)
        self.LayerNorm = _norm(sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        position = torch.arange(tokens.shape[1], device=tokens.device)
        of_type = self.token_type_embeddings.weight[0]  # one sentence
        return self.LayerNorm(self.word_embeddings(tokens) + of_type + self.position_embeddings(position))


class Layer(nn.Module):
    """Self-attention, cross-attention to patches if `vision_width` is given, two linear layers."""

    def __init__(self, sizes: BertSizes, vision_width: int | None) -> None:
        super().__init__()
        self.attention = _attention(sizes, sizes.width)
        self.crossattention = _attention(sizes, vision_width) if vision_width else None
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(sizes.width, sizes.inner)})
        self.output = AddAndNorm(sizes.inner, sizes.width)

    def forward(self, text: Tensor, is_token: Tensor, patches: Tensor | None = None) -> Tensor:
        text = _attend(self.attention, text, text, is_token)
        if self.crossattention is not None and patches is not None:
            text = _attend(self.crossattention, text, patches, None)
        return self.output(F.gelu(self.intermediate["dense"](text)), text)


def _attention(sizes: BertSizes, source_width: int) -> nn.ModuleDict:
    heads = QueryKeyValue(sizes.width, source_width, sizes.heads)
    return nn.ModuleDict({"self": heads, "output": AddAndNorm(sizes.width, sizes.width)})


def _attend(parts: nn.ModuleDict, text: Tensor, source: Tensor, is_token: Tensor | None) -> Tensor:
    return parts["output"](parts["self"](text, source, is_token), text)


class QueryKeyValue(nn.Module):
    def __init__(self, width: int, source_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)

    def forward(self, text: Tensor, source: Tensor, is_token: Tensor | None) -> Tensor:
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, text), (self.key, source), (self.value, source))
        )
        mask = None if is_token is None else is_token[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


class AddAndNorm(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = _norm(width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-12)
