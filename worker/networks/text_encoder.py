"""Tokenizer and text encoder: text -> embeddings. Texts are never truncated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class PromptTooLong(ValueError):
    """A text has more tokens than the encoder takes; the message contains the numbers, not the text."""


@dataclass(frozen=True)
class TextEncoder:
    """
    Args:
        multi_vector: token ids that replace the one of a word, for textual inversions of several vectors.
    """

    tokenizer: Any  # transformers has no types for what from_pretrained returns
    encoder: Any
    multi_vector: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """(B, tokens), padded. Raises PromptTooLong."""
        limit = self.max_tokens
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
    def encode(self, token_ids: Tensor) -> Tensor:
        """(B, tokens) -> (B, tokens, dim)."""
        return self.encoder(token_ids.to(self.encoder.device))[0]

    @property
    def max_tokens(self) -> int:
        """With start and end token: 77 for CLIP. Some tokenizers have a huge model_max_length."""
        return min(int(self.tokenizer.model_max_length), int(self.encoder.config.max_position_embeddings))

    @property
    def dim(self) -> int:
        return int(self.encoder.config.hidden_size)


@dataclass(frozen=True)
class TextEmbeddings:
    """The same texts, encoded for each network: (B, tokens, dim) each. Slices select texts."""

    image: Tensor
    video: Tensor

    def __getitem__(self, texts: slice) -> TextEmbeddings:
        image = self.image[texts]
        # One tensor stays one object, by which TextKVCache knows that both networks have the same text.
        return TextEmbeddings(image, image if self.video is self.image else self.video[texts])
