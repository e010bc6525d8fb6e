"""Tokenizer and text encoder, or two of each: text -> embeddings. Texts are never truncated.

A long text is split into windows of the encoder's length, each with start and end token, whose embeddings stand one
after another (`TextOptions.chunks`). Weights move the embedding z of a token away from, or towards, that of an empty
text at its position: e + w (z - e), as ComfyUI and compel do. Pooled embeddings have no weights, and are those of the
first window.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sampler import InvalidSetting
from service.catalog.text_layers import MEANING
from worker.networks.prompt_tokens import PromptTooLong, TextOptions, Tokens, tokenize

__all__ = [
    "AnyTextEncoder",
    "Encoded",
    "PairedTextEncoder",
    "PromptTooLong",
    "TextEmbeddings",
    "TextEncoder",
    "TextOptions",
]
PLAIN = TextOptions()


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
        return self.tokenize(texts, limit=limit).ids

    def tokenize(self, texts: Sequence[str], options: TextOptions = PLAIN, limit: int | None = None) -> Tokens:
        """(B, windows * tokens), all texts with as many windows as the longest. Raises PromptTooLong, InvalidSetting.

        Args:
            limit: tokens of a window; None: `max_tokens`.
        """
        return tokenize(self.tokenizer, self.multi_vector, texts, options, limit or self.max_tokens)

    def encode(self, tokens: Tokens | Tensor, clip_skip: Sequence[int] = ()) -> Encoded:
        """(B, windows * tokens) -> (B, windows * tokens, dim).

        Args:
            clip_skip: per text, the layers that are skipped: 1 is the output of the last layer but one, with the final
                norm, as in diffusers' encode_prompt.

        Raises:
            InvalidSetting: `clip_skip` is above `most_clip_skip`.
        """
        _check_clip_skip(clip_skip, self.most_clip_skip)
        return _encode(self, Tokens.of(tokens), clip_skip)

    @torch.no_grad()
    def run(self, token_ids: Tensor, clip_skip: Sequence[int], *, is_paired: bool = False) -> Encoded:
        """(rows, tokens) -> (rows, tokens, dim); of SDXL (`is_paired`) the states of the last layer but one."""
        token_ids = token_ids.to(self.encoder.device)
        if not is_paired and not any(clip_skip):
            return Encoded(self.encoder(token_ids)[0])
        output = self.encoder(token_ids, output_hidden_states=True)
        states, last = output.hidden_states, -2 if is_paired else -1
        found = states[last]
        if any(clip_skip):
            found = torch.stack([states[last - skipped][row] for row, skipped in enumerate(clip_skip)])
        return Encoded(
            found if is_paired else self.layers.final_layer_norm(found), getattr(output, "text_embeds", None)
        )

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
    def most_clip_skip(self) -> int:
        return int(self.encoder.config.num_hidden_layers)

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
        return self.tokenize(texts).ids

    def tokenize(self, texts: Sequence[str], options: TextOptions = PLAIN) -> Tokens:
        """(2, B, windows * tokens). Raises PromptTooLong, InvalidSetting."""
        limit = self.max_tokens
        return Tokens.stacked([part.tokenize(texts, options, limit) for part in (self.first, self.second)])

    def encode(self, tokens: Tokens | Tensor, clip_skip: Sequence[int] = ()) -> Encoded:
        """(2, B, windows * tokens) -> (B, windows * tokens, dim), the encoders side by side.

        Args:
            clip_skip: per text, the layers that are skipped before the last but one, which SDXL reads.

        Raises:
            InvalidSetting: `clip_skip` is above `most_clip_skip`.
        """
        tokens = Tokens.of(tokens)
        _check_clip_skip(clip_skip, self.most_clip_skip)
        first, second = (
            _encode(part, tokens.of_encoder(number), clip_skip, is_paired=True)
            for number, part in enumerate((self.first, self.second))
        )
        return Encoded(torch.cat((first.text, second.text), dim=-1), second.pooled)

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
    def most_clip_skip(self) -> int:
        return min(self.first.most_clip_skip, self.second.most_clip_skip) - 1

    @property
    def dim(self) -> int:
        return self.first.dim + self.second.dim

    @property
    def pooled_dim(self) -> int:
        return int(self.second.encoder.config.projection_dim)


def _encode(encoder: TextEncoder, tokens: Tokens, clip_skip: Sequence[int], *, is_paired: bool = False) -> Encoded:
    """Of one encoder: window by window, with weights."""
    texts, windows = len(tokens.ids), tokens.ids.shape[-1] // tokens.limit
    skipped = list(clip_skip) or [0] * texts
    rows = tokens.ids.reshape(-1, tokens.limit)
    found = encoder.run(rows, [skip for skip in skipped for _ in range(windows)], is_paired=is_paired)
    text = found.text.reshape(texts, windows * tokens.limit, -1)
    if tokens.weights is not None and tokens.empty is not None:
        nothing = encoder.run(tokens.empty.expand(texts, -1), skipped, is_paired=is_paired).text.repeat(1, windows, 1)
        weights = tokens.weights.to(text.device)[..., None]
        moved = nothing.float() + weights * (text.float() - nothing.float())
        text = torch.where(weights == 1, text, moved.to(text.dtype))
    return Encoded(text, None if found.pooled is None else found.pooled[::windows])


def _check_clip_skip(clip_skip: Sequence[int], most: int) -> None:
    if (skipped := max(clip_skip, default=0)) > most:
        raise InvalidSetting(f"clip_skip={skipped} is above {most}, what the text encoders have layers for; {MEANING}")


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
