"""From texts to token ids: weights, windows of a long text, and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from sampler import InvalidSetting
from service.catalog.prompt_limits import BREAK
from service.catalog.prompt_weights import WeightedSpan, weighted_spans
from worker.networks.prompt_windows import Window, Word, size, split_words

COMMA, WORD_END = ",</w>", "</w>"  # as CLIP's tokenizers write them


class PromptTooLong(ValueError):
    """A text has more tokens than the encoder takes; the message contains the numbers, not the text."""


class _HasTextOptions(Protocol):
    @property
    def prompt_chunks(self) -> int: ...
    @property
    def prompt_weighting(self) -> bool: ...


@dataclass(frozen=True)
class TextOptions:
    """How texts are read.

    Args:
        chunks: most windows of the encoder that a text may fill; above 1, the word BREAK begins another one.
        weighting: whether brackets weight words, see `service.catalog.prompt_weights`.
    """

    chunks: int = 1
    weighting: bool = False

    @classmethod
    def of(cls, source: _HasTextOptions) -> Self:
        """Of a Generation or a registry entry."""
        return cls(source.prompt_chunks, source.prompt_weighting)


@dataclass(frozen=True)
class Tokens:
    """Token ids of B texts: (B, windows * limit), or (2, B, windows * limit) for two encoders.

    `weights` has the shape of `ids`; None if all are 1. `empty`: a window without text, (1, limit) or (2, 1, limit).
    """

    ids: Tensor
    limit: int
    weights: Tensor | None = None
    empty: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tokens | Tensor) -> Tokens:
        """Of ids in one window."""
        return tokens if isinstance(tokens, Tokens) else cls(tokens, tokens.shape[-1])

    @classmethod
    def stacked(cls, parts: Sequence[Tokens]) -> Tokens:
        """Of several encoders. Their tokenizers may need different numbers of windows."""
        most = max(part.ids.shape[-1] for part in parts)
        parts = [part.with_length(most) for part in parts]
        ids, empty = (torch.stack([getattr(part, name) for part in parts]) for name in ("ids", "empty"))
        if all(part.weights is None for part in parts):
            return cls(ids, parts[0].limit, None, empty)
        weights = [torch.ones(part.ids.shape) if part.weights is None else part.weights for part in parts]
        return cls(ids, parts[0].limit, torch.stack(weights), empty)

    def with_length(self, length: int) -> Tokens:
        """With empty windows at the end, up to `length` tokens."""
        missing = length - self.ids.shape[-1]
        if not missing or self.empty is None:
            return self
        ids = torch.cat((self.ids, self.empty.repeat(len(self.ids), missing // self.limit)), dim=-1)
        if self.weights is None:
            return Tokens(ids, self.limit, None, self.empty)
        weights = torch.cat((self.weights, torch.ones(len(ids), missing)), dim=-1)
        return Tokens(ids, self.limit, weights, self.empty)

    def of_encoder(self, number: int) -> Tokens:
        """The inverse of `stacked`."""
        weights = None if self.weights is None else self.weights[number]
        return Tokens(self.ids[number], self.limit, weights, None if self.empty is None else self.empty[number])

    def __getitem__(self, texts: slice) -> Tokens:
        weights = None if self.weights is None else self.weights[..., texts, :]
        return Tokens(self.ids[..., texts, :], self.limit, weights, self.empty)


def tokenize(
    tokenizer: Any, vectors: Mapping[int, tuple[int, ...]], texts: Sequence[str], options: TextOptions, limit: int
) -> Tokens:
    """(B, windows * limit), all texts with as many windows as the longest.

    Args:
        vectors: token ids that replace the one of a word.
        limit: tokens of a window, with start and end token.

    Raises:
        PromptTooLong: a text has more than one window, or than `options.chunks`.
        InvalidSetting: brackets that weight no words.
    """
    start, end = _frame(tokenizer)
    windows = [_windows(tokenizer, vectors, text, options, limit) for text in texts]
    count = max(map(len, windows))
    rows = [[*of_text, *[[]] * (count - len(of_text))] for of_text in windows]

    def pad(contents: Sequence[Window]) -> Tensor:
        ids = [[*start, *(token for word in words for token in word.ids), *end] for words in contents]
        padded = tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=limit, return_tensors="pt")
        return padded.input_ids

    ids = pad([window for of_text in rows for window in of_text]).reshape(len(texts), count * limit)
    return Tokens(ids, limit, _weights(rows, len(start), limit), pad([[]]))


def _weights(rows: Sequence[Sequence[Window]], start: int, limit: int) -> Tensor | None:
    """(B, windows * limit) float32; None if all are 1."""
    if all(word.weight == 1 for windows in rows for window in windows for word in window):
        return None
    weights = torch.ones(len(rows), len(rows[0]), limit)
    for row, windows in enumerate(rows):
        for number, window in enumerate(windows):
            of_tokens = [word.weight for word in window for _ in word.ids]
            weights[row, number, start : start + len(of_tokens)] = torch.tensor(of_tokens)
    return weights.reshape(len(rows), -1)


def _windows(
    tokenizer: Any, vectors: Mapping[int, tuple[int, ...]], text: str, options: TextOptions, limit: int
) -> list[Window]:
    frame = sum(map(len, _frame(tokenizer)))
    parts = [_words(tokenizer, vectors, spans) for spans in _parts(text, options)]
    if options.chunks == 1:
        (only,) = parts
        if (count := size(only) + frame) > limit:
            raise PromptTooLong(f"the text has {count} tokens, the text encoder takes {limit}; shorten it")
        return [only]
    windows = [window for part in parts for window in split_words(part, limit - frame)]
    if len(windows) > options.chunks:
        raise PromptTooLong(
            f"the text fills {len(windows)} windows of {limit} tokens, the model reads {options.chunks}; shorten it"
        )
    return windows


def _parts(text: str, options: TextOptions) -> list[list[WeightedSpan]]:
    """The spans of each part between the words BREAK, at least one part."""
    try:
        spans = weighted_spans(text) if options.weighting else (WeightedSpan(text, 1.0),)
    except ValueError as e:
        raise InvalidSetting(f"a prompt has weights that cannot be read: {e}") from e
    parts: list[list[WeightedSpan]] = [[]]
    for span in spans:
        texts = BREAK.split(span.text) if options.chunks > 1 else [span.text]
        parts[-1].append(span._replace(text=texts[0]))
        parts.extend([span._replace(text=further)] for further in texts[1:])
    return [part for part in parts if any(span.text.strip() for span in part)] or [[]]


def _words(tokenizer: Any, vectors: Mapping[int, tuple[int, ...]], spans: Sequence[WeightedSpan]) -> Window:
    words: Window = []
    added = set(tokenizer.get_added_vocab().values())
    for span in spans:
        ids: list[int] = tokenizer(span.text, add_special_tokens=False, verbose=False)["input_ids"]
        names: list[str] = tokenizer.convert_ids_to_tokens(ids)
        ends = [i + 1 for i, name in enumerate(names) if name.endswith(WORD_END) or ids[i] in added]
        for first, last in pairwise(dict.fromkeys((0, *ends, len(ids)))):
            tokens = tuple(each for token in ids[first:last] for each in vectors.get(token, (token,)))
            words.append(Word(tokens, span.weight, names[first:last] == [COMMA]))
    return words


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """(start, end): the tokens around every text."""
    ids: list[int] = tokenizer("")["input_ids"]
    return ids[: len(ids) // 2], ids[len(ids) // 2 :]
