"""Weights in prompts, as common user interfaces write them: `(word:1.3)`, `(word)`, `[word]`. Without torch.

`(words:1.3)` multiplies the weight of the words by 1.3, `(words)` by 1.1, `[words]` divides it by 1.1; brackets inside
brackets multiply. A backslash takes the meaning from the bracket or backslash after it: `\\(`.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

STEP = 1.1  # of a bracket without a number
LEAST, MOST = 0.1, 5.0
DEEPEST = 16  # brackets around one another

# A weight is what looks like a number, also a wrong one, between the last colon and the closing bracket.
_PARTS = re.compile(
    r"\\([()\[\]\\])"
    r"|:\s*([+-]?(?:[\d.][^\s:()\[\]]*|nan|inf\w*))\s*\)"
    r"|([()\[\]])"
    r"|([^\\:()\[\]]+|[\\:])",
    re.IGNORECASE,
)
_OPENED_BY = {")": "(", "]": "["}
_SCHEDULE = re.compile(r"[|]|:\s*[\d.]+\s*$")
_LITERAL = "write \\( and \\[ for brackets that are text"


class WeightedSpan(NamedTuple):
    """A part of a prompt whose words have one weight; 1 is no weight."""

    text: str
    weight: float


class _Bracket(NamedTuple):
    kind: str
    start: int  # index in the prompt
    spans: list[WeightedSpan]  # what it encloses


def weighted_spans(prompt: str) -> tuple[WeightedSpan, ...]:
    """The parts of a prompt, without its brackets; neighbours have different weights.

    Raises:
        ValueError: one sentence without the prompt's words. Brackets do not match or enclose nothing, or a weight is no
            number, or outside LEAST..MOST.
    """
    opened = [_Bracket("", 0, [])]
    for part in _PARTS.finditer(prompt):
        escaped, number, bracket, text = part.groups()
        if bracket in ("(", "["):
            if len(opened) > DEEPEST:
                raise ValueError(f"more than {DEEPEST} brackets around one another; write a weight, as in (word:1.3)")
            opened.append(_Bracket(bracket, part.start(), []))
        elif number or bracket:
            _close(opened, prompt, part, number)
        else:
            opened[-1].spans.append(WeightedSpan(escaped or text, 1.0))
    if opened[1:]:
        raise ValueError(f"the '{opened[-1].kind}' {_place(opened[-1].start)} is not closed; close it, or {_LITERAL}")
    return _merged(opened[0].spans)


def without_weights(prompt: str) -> str:
    """The words alone. Raises ValueError, as `weighted_spans`."""
    return "".join(span.text for span in weighted_spans(prompt))


def _close(opened: list[_Bracket], prompt: str, part: re.Match[str], number: str | None) -> None:
    closing, end = part[0][-1], part.end() - 1
    kind, start, spans = opened[-1]
    if kind != _OPENED_BY[closing]:
        raise ValueError(f"the '{closing}' {_place(end)} closes no '{_OPENED_BY[closing]}'; {_LITERAL}")
    if not any(span.text.strip() for span in spans):
        raise ValueError(f"the '{kind}' {_place(start)} encloses no words; leave it out, or {_LITERAL}")
    if kind == "[" and _SCHEDULE.search(prompt[start + 1 : end]):
        raise ValueError(
            f"the '[' {_place(start)} looks like words that change during the run, which is not supported; "
            f"a weight is written (word:1.3); {_LITERAL}"
        )
    factor = STEP if kind == "(" else 1 / STEP
    if number is not None:
        factor = _number(number, part.start(2))
    weighted = [WeightedSpan(span.text, _checked(span.weight * factor, start)) for span in spans]
    opened.pop()
    opened[-1].spans.extend(weighted)


def _number(text: str, start: int) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(f"the weight {_place(start)} is not a number such as 1.3; {_LITERAL}") from None
    return _checked(weight, start)


def _checked(weight: float, start: int) -> float:
    if not LEAST <= weight <= MOST:
        shown = f"{weight:g}" if math.isfinite(weight) else str(weight)
        raise ValueError(
            f"the weight {_place(start)} is {shown}, outside {LEAST:g} to {MOST:g}; leave out words that should have "
            "none, or put them into negative_prompt"
        )
    return round(weight, 9)  # so that (([[word]])) has exactly 1


def _merged(spans: list[WeightedSpan]) -> tuple[WeightedSpan, ...]:
    found: list[WeightedSpan] = []
    for span in spans:
        if found and found[-1].weight == span.weight:
            found[-1] = WeightedSpan(found[-1].text + span.text, span.weight)
        else:
            found.append(span)
    return tuple(found)


def _place(index: int) -> str:
    return f"at character {index + 1}"
