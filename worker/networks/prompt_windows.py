"""Splits the tokens of a long text into windows of the text encoder, as common user interfaces do. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Word(NamedTuple):
    """Tokens that stay together: a word, a sign, or all vectors of a textual inversion."""

    ids: tuple[int, ...]
    weight: float = 1.0
    is_comma: bool = False


Window = list[Word]


def most_carried(room: int) -> int:
    """Tokens that may move to the next window, so that it begins after a comma: 20 of CLIP's 75."""
    return room * 4 // 15


def split_words(words: Iterable[Word], room: int) -> list[Window]:
    """Fill windows of `room` tokens, at least one.

    A window ends with a word. If it has a comma among its last `most_carried` tokens, it ends after the last one, so
    that a phrase is not split (AUTOMATIC1111's "comma backtrack"; ComfyUI keeps words together).
    """
    windows: list[Window] = [[]]
    for word in _cut(words, room):
        if size(windows[-1]) + len(word.ids) > room:
            windows.append(_after_last_comma(windows[-1], most_carried(room)))
        windows[-1].append(word)
    return windows


def size(window: Sequence[Word]) -> int:
    """Tokens in a window."""
    return sum(len(word.ids) for word in window)


def _after_last_comma(window: Window, most: int) -> Window:
    """Take the words after the last comma out of a window if they have at most `most` tokens."""
    commas = [index for index, word in enumerate(window) if word.is_comma]
    start = commas[-1] + 1 if commas else len(window)
    if size(window[start:]) > most:
        return []
    carried = window[start:]
    del window[start:]
    return carried


def _cut(words: Iterable[Word], room: int) -> Iterable[Word]:
    """A word that fills more than a window is cut."""
    for word in words:
        for start in range(0, len(word.ids), room):
            yield word._replace(ids=word.ids[start : start + room])
