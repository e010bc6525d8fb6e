"""A tokenizer and its text encoder: text -> embeddings. Nothing is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class PromptTooLong(ValueError):
    """A text has more tokens than the encoder reads; the message has the numbers, not the text."""


@dataclass(frozen=True)
class TextReader:
    tokenizer: Any  # transformers has no types for what from_pretrained returns
    encoder: Any

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """(B, tokens), padded. Raises PromptTooLong."""
        limit = self.limit
        for text in texts:
            if (count := len(self.tokenizer(text)["input_ids"])) > limit:
                raise PromptTooLong(f"the text has {count} tokens, the text encoder reads {limit}; shorten it")
        return self.tokenizer(list(texts), padding="max_length", max_length=limit, return_tensors="pt").input_ids

    @torch.no_grad()
    def encode(self, token_ids: Tensor) -> Tensor:
        """(B, tokens) -> (B, tokens, dim)."""
        return self.encoder(token_ids.to(self.encoder.device))[0]

    @property
    def limit(self) -> int:
        """Tokens, with the marks of start and end: 77 for CLIP. Some tokenizers name a huge number."""
        return min(int(self.tokenizer.model_max_length), int(self.encoder.config.max_position_embeddings))

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)


@dataclass(frozen=True)
class Embeddings:
    """The same texts as each network reads them, (B, tokens, dim) each; slices pick texts."""

    image: Tensor
    video: Tensor

    def __getitem__(self, texts: slice) -> Embeddings:
        image = self.image[texts]
        # one tensor stays one, by which its keys and values are known to serve both networks
        return Embeddings(image, image if self.video is self.image else self.video[texts])
