"""T5 and UMT5: texts -> embeddings of a fixed number of tokens. Texts are never truncated.

On a GPU the encoder, the largest network of some models, waits in the host's memory and comes to the GPU only to
encode. Embeddings of recent texts are kept, so that most jobs of a batch need no encoder.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import html
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worker.networks.not_finite import finite
from worker.networks.prompt_tokens import PromptTooLong

KEPT_BYTES = 128 * 2**20  # of embeddings, in the host's memory; one of UMT5 has 4 MB


class T5Reader:
    """
    Args:
        tokenizer, encoder: transformers' T5 tokenizer and encoder.
        tokens: length that every text is padded to.
        masked: whether the encoder ignores the padding and its embeddings are zero, as Wan was trained, and texts are
            cleaned; else the padding is read like words and texts as they are, as CogVideoX was.
        device: where embeddings go.
        dtype: of the embeddings.
    """

    def __init__(
        self, tokenizer: Any, encoder: Any, *, tokens: int, masked: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.tokenizer, self.encoder, self.tokens, self.masked = tokenizer, encoder, tokens, masked
        self.device, self.dtype = device, dtype
        self._kept = OrderedDict[str, Tensor]()

    @property
    def dim(self) -> int:
        return int(self.encoder.config.d_model)

    def check_length(self, texts: Sequence[str]) -> None:
        """Raises PromptTooLong."""
        for text in texts:
            self._tokenize(text)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """(B, tokens, dim). Raises PromptTooLong, NotFinite."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if new:
            tokens = [self._tokenize(text) for text in new]
            self.encoder.to(self.device)
            try:  # each alone: its bits must not depend on which others are kept
                found = [self._run(ids.to(self.device), mask.to(self.device)) for ids, mask in tokens]
            finally:
                if self.device.type == "cuda":
                    self.encoder.to("cpu")
            name = "text encoder (text_encoder)"
            self._kept |= {text: finite(x.to(self.dtype), name)[0].cpu() for text, x in zip(new, found, strict=True)}
        wanted = torch.stack([self._kept[text] for text in texts]).to(self.device)
        for text in texts:
            self._kept.move_to_end(text)
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return wanted

    def _tokenize(self, text: str) -> tuple[Tensor, Tensor]:
        """(1, tokens) of ids, and 1 where they are text. Raises PromptTooLong."""
        read = clean(text) if self.masked else text
        padded = self.tokenizer([read], padding="max_length", max_length=self.tokens, return_tensors="pt")
        if (count := padded.input_ids.shape[1]) > self.tokens:
            raise PromptTooLong(f"the text has {count} tokens, the text encoder takes {self.tokens}; shorten it")
        return padded.input_ids, padded.attention_mask

    def _run(self, ids: Tensor, mask: Tensor) -> Tensor:
        if not self.masked:
            return self.encoder(ids)[0]
        return self.encoder(ids, mask)[0].masked_fill(mask[..., None] == 0, 0)


def clean(text: str) -> str:
    """As diffusers' pipelines without ftfy: HTML's entities become letters, runs of spaces one space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
