"""The printed form of a plan: one row for each distinct kind of step, in the paper's letters.

D_I, D_V  denoise with the image or the video model      R         go back by Gaussian noise
N_I, N_V  go back (DDIM inversion) with that model       S_V       step of the multistep SDE solver
D_V+I     denoise along the sum of both models           FreeInit  new start noise, low frequencies kept
M_I, M_V  step of DPM-Solver++ 2M with that model
C_I, C_V  step of consistency sampling (LCM)             Z         step of velocity 0 (CFG-Zero*)
D>_I, D>_V  like D, after which the latents are larger; D<_I, D<_V: smaller
A move in brackets changes nothing, so its network is not called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from sampler.denoise_and_goback_moves import (
    AnyMove,
    ConsistencyMove,
    FusedMove,
    Move,
    MultistepMove,
    Renoise,
    ResizingMove,
    Restart,
    SolverMove,
    ZeroVelocity,
)
from sampler.guidance_rules import CfgZeroStar, RuledScale, Scale, number_of

LETTERS = {"image": "I", "video": "V"}
HEAD = ("steps", "count", "kind", "moves", "guidance", "calls a step")


def table(steps: Sequence[Sequence[AnyMove]]) -> str:
    """One row for each distinct sequence of symbols, in order of first appearance, then the totals."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i, moves in enumerate(steps):
        kinds.setdefault(tuple(_symbol(move) for move in moves), []).append(i)
    rows = [HEAD, *(_row(symbols, indices, steps) for symbols, indices in kinds.items())]
    rows.append(("total", str(len(steps)), "", "", "", _calls(move for moves in steps for move in moves)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if any("(" in symbol for symbols in kinds for symbol in symbols):
        lines.append("(in brackets: changes nothing, so its network is not called)")
    return "\n".join(lines)


def _row(symbols: tuple[str, ...], indices: list[int], steps: Sequence[Sequence[AnyMove]]) -> tuple[str, ...]:
    example = steps[indices[0]]
    guidance = [_span([_guidance(steps[i][k]) for i in indices]) for k in range(len(symbols))]
    return (
        _ranges(indices),
        str(len(indices)),
        _kind(example),
        " ".join(symbols),
        " ".join(g for g in guidance if g),
        _calls(example),
    )


def _symbol(move: AnyMove) -> str:
    match move:
        case Move():
            goes_back = move.dst < move.src or (move.dst == move.src and number_of(move.guidance) < 0)
            symbol = f"{'N' if goes_back else 'D'}_{LETTERS[move.model]}"
        case FusedMove():
            symbol = "D_" + "+".join(LETTERS[call.model] for call in move.parts)
        case MultistepMove():
            symbol = f"M_{LETTERS[move.model]}"
        case SolverMove():
            symbol = f"S_{LETTERS[move.model]}"
        case ConsistencyMove():
            symbol = f"C_{LETTERS[move.model]}"
        case Renoise():
            symbol = "R"
        case ZeroVelocity():
            symbol = "Z"
        case ResizingMove():
            symbol = f"D{'>' if move.factor > 1 else '<'}_{LETTERS[move.model]}"
        case Restart():
            symbol = "FreeInit"
    return f"({symbol})" if move.is_free else symbol


def _kind(moves: Sequence[AnyMove]) -> str:
    """The paper's name: go-back letters, a dash, denoising letters, then the ordinary step."""
    symbols = [_symbol(move).strip("()") for move in moves]
    restart = ["FreeInit"] if symbols[:1] == ["FreeInit"] else []
    if len(symbols) == len(restart):
        return "".join(restart) or "nothing"
    *zigzag, ordinary = symbols[len(restart) :]
    back = "".join(s[-1] for s in zigzag if s[0] in "NR")
    forth = "".join(s[-1] for s in zigzag if s[0] == "D")
    last = ("fused " if "+" in ordinary else "") + (ordinary.partition("_")[2] or ordinary)
    return ", ".join([*restart, *([f"{back}-{forth}"] if zigzag else []), last])


def _guidance(move: AnyMove) -> tuple[Scale, ...]:
    return tuple(call.guidance for call in move.networks)


def _shown(guidance: Scale) -> str:
    """'+4', or with the rule '+4 apg'."""
    rule = guidance.rule if isinstance(guidance, RuledScale) else None
    name = "" if rule is None else " cfg-zero" if isinstance(rule, CfgZeroStar) else " apg"
    return f"{number_of(guidance):+.3g}{name}"


def _span(scales: list[tuple[Scale, ...]]) -> str:
    """'+4', or '+6..+2' for the first and the last step of this kind; '' for a move without network call."""
    first, last = ("&".join(map(_shown, scales[k])) for k in (0, -1))
    return first if first == last else f"{first}..{last}"


def _calls(moves: Iterable[AnyMove]) -> str:
    count = Counter(LETTERS[call.model] for move in moves for call in move.calls)
    return " + ".join(f"{count[letter]} {letter}" for letter in "IV" if count[letter]) or "none"


def _ranges(indices: list[int], most: int = 3) -> str:
    """Step indices from 0: '0-48', or '0, 2, 4, .. 48' for more than `most` ranges."""
    runs = [
        [i for _, i in run] for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0])
    ]  # consecutive indices keep their distance to their rank
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(words if len(words) <= most else [*words[:most], f".. {words[-1]}"])
