"""Tokenizer and text encoder, or two of each: text -> embeddings. Texts are never truncated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PromptTooLong(ValueError):
    """A text has more tokens than the encoder takes; the message contains the numbers, not the text."""


class Encoded(NamedTuple):
    """Embeddings (B, tokens, dim); of SDXL also the pooled ones, (B, width)."""

    text: Tensor
    pooled: Tensor | None = None

    def zeroed(self, rows: Sequence[bool]) -> Encoded:
        """With zeros in these rows."""
        mask = torch.tensor(rows, device=self.text.device)
        pooled = None if self.pooled is None else self.pooled.masked_fill(mask[:, None], 0)
        return Encoded(self.text.masked_fill(mask[:, None, None], 0), pooled)


@dataclass(frozen=True)
class TextEncoder:
    """
    Args:
        multi_vector: token ids that replace the one of a word, for textual inversions of several vectors.
    """

    tokenizer: Any  # transformers has no types for what from_pretrained returns
    encoder: Any
    multi_vector: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])

    def token_ids(self, texts: Sequence[str], limit: int | None = None) -> Tensor:
        """(B, tokens), padded to `limit`, or to `max_tokens`. Raises PromptTooLong."""
        limit = limit or self.max_tokens
        token_ids = [self._token_ids(text) for text in texts]
        if (count := max(map(len, token_ids))) > limit:
            raise PromptTooLong(f"the text has {count} tokens, the text encoder takes {limit}; shorten it")
        return self.tokenizer.pad(
            {"input_ids": token_ids}, padding="max_length", max_length=limit, return_tensors="pt"
        ).input_ids

    def _token_ids(self, text: str) -> list[int]:
        words: list[int] = self.tokenizer(text)["input_ids"]
        return [token_id for word in words for token_id in self.multi_vector.get(word, (word,))]

    @torch.no_grad()
    def encode(self, token_ids: Tensor) -> Encoded:
        """(B, tokens) -> (B, tokens, dim)."""
        return Encoded(self.encoder(token_ids.to(self.encoder.device))[0])

    def copied(self) -> TextEncoder:
        """A copy with the same parameters, to which words can be added."""
        weights = {id(x): x for x in (*self.encoder.parameters(), *self.encoder.buffers())}
        return TextEncoder(copy.deepcopy(self.tokenizer), copy.deepcopy(self.encoder, weights), self.multi_vector)

    @property
    def parts(self) -> dict[str, TextEncoder]:
        """By the name of the component."""
        return {"text_encoder": self}

    @property
    def networks(self) -> tuple[Any, ...]:
        return (self.encoder,)

    @property
    def layers(self) -> Any:
        """The network without its projection: a CLIPTextModel."""
        return getattr(self.encoder, "text_model", self.encoder)

    @property
    def max_tokens(self) -> int:
        """With start and end token: 77 for CLIP. Some tokenizers have a huge model_max_length."""
        return min(int(self.tokenizer.model_max_length), int(self.encoder.config.max_position_embeddings))

    @property
    def dim(self) -> int:
        return int(self.encoder.config.hidden_size)


@dataclass(frozen=True)
class PairedTextEncoder:
    """SDXL's two text encoders (arXiv:2307.01952, section 2.1), used like one.

    Args:
        first: a CLIPTextModel.
        second: a CLIPTextModelWithProjection, which also gives the pooled embeddings.
    """

    first: TextEncoder
    second: TextEncoder

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """(2, B, tokens), padded as each tokenizer does. Raises PromptTooLong."""
        limit = self.max_tokens
        return torch.stack([encoder.token_ids(texts, limit) for encoder in (self.first, self.second)])

    @torch.no_grad()
    def encode(self, token_ids: Tensor) -> Encoded:
        """(2, B, tokens) -> (B, tokens, dim): what the last layer of each encoder but one returns, side by side."""
        outputs = [
            part.encoder(ids.to(part.encoder.device), output_hidden_states=True)
            for part, ids in zip((self.first, self.second), token_ids, strict=True)
        ]
        return Encoded(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds)

    def copied(self) -> PairedTextEncoder:
        return PairedTextEncoder(self.first.copied(), self.second.copied())

    @property
    def parts(self) -> dict[str, TextEncoder]:
        return {"text_encoder": self.first, "text_encoder_2": self.second}

    @property
    def networks(self) -> tuple[Any, ...]:
        return self.first.encoder, self.second.encoder

    @property
    def max_tokens(self) -> int:
        return min(self.first.max_tokens, self.second.max_tokens)

    @property
    def dim(self) -> int:
        return self.first.dim + self.second.dim

    @property
    def pooled_dim(self) -> int:
        return int(self.second.encoder.config.projection_dim)


AnyTextEncoder = TextEncoder | PairedTextEncoder


def same_parameters(a: AnyTextEncoder, b: AnyTextEncoder) -> bool:
    """Whether they are one object, or one is a copy that shares all parameters and words: the same embeddings."""
    weights = [[id(x) for network in encoder.networks for x in network.parameters()] for encoder in (a, b)]
    words = [[part.multi_vector for part in encoder.parts.values()] for encoder in (a, b)]
    return weights[0] == weights[1] and words[0] == words[1]


def text_encoder_of(parts: Mapping[str, TextEncoder]) -> AnyTextEncoder:
    """The inverse of `parts`."""
    second = parts.get("text_encoder_2")
    return parts["text_encoder"] if second is None else PairedTextEncoder(parts["text_encoder"], second)


@dataclass(frozen=True)
class TextEmbeddings:
    """The same texts, encoded for each network: (B, tokens, dim) each, and of SDXL the pooled ones, (B, width).

    Slices select texts.
    """

    image: Tensor
    video: Tensor
    image_pooled: Tensor | None = None
    video_pooled: Tensor | None = None

    def __getitem__(self, texts: slice) -> TextEmbeddings:
        image = self.image[texts]
        # One tensor stays one object, by which TextKVCache knows that both networks have the same text.
        video = image if self.video is self.image else self.video[texts]
        pooled = (None if x is None else x[texts] for x in (self.image_pooled, self.video_pooled))
        return TextEmbeddings(image, video, *pooled)
