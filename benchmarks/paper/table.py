"""Results as text, in Markdown's tables, which terminals show well too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.paper.facts import NOT_KNOWN
from benchmarks.paper.results import Results

FLOOR = "real against real"


def text(results: Results) -> str:
    """Everything but the seconds, which are other ones in every run."""
    parts = [
        _heading(results),
        _distances(results),
        _differences(results),
        _scores(results),
        _published(results),
        _notes(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def seconds_text(results: Results) -> str:
    made = results["made"]
    rows: list[list[str]] = []
    for name, seconds in made["seconds_per_clip"].items():
        cpu = made["cpu_seconds_per_clip"].get(name)
        rows.append([name, f"{seconds:.2f}", NOT_KNOWN if cpu is None else f"{cpu:.2f}"])
    heading = f"Made by {', '.join(made['by'])} on {', '.join(made['devices'])}."
    return f"{heading}\n\n{_table(['arm', 's a clip', 'CPU s'], rows)}\n"


def _heading(results: Results) -> str:
    about = f"{results['n']} prompts, {results['clips']} clips of each, model {results['model']}"
    return f"{results['title']}\n{about}; measured on {results['measured']} files."


def _distances(results: Results) -> str:
    columns, of_floor = results["columns"]["distances"], results["floor"]
    headings = ["arm", "image + video calls"]
    real = [FLOOR, ""]
    for name, heading in columns.items():
        headings += [heading, f"{heading.removesuffix('FD').removesuffix('FVD').strip(' -')} KVD".strip()]
        real += [_spread(of_floor[name]["value"], of_floor[name]["spread"]), "0 expected"]
    return _table(headings, [*(_distance_row(arm, list(columns)) for arm in results["arms"]), real])


def _distance_row(arm: Results, spaces: Sequence[str]) -> list[str]:
    calls = arm["calls"]
    cells = [arm["name"], NOT_KNOWN if calls is None else f"{calls['image']} + {calls['video']}"]
    for name in spaces:
        found = arm["distances"][name]
        cells += [_spread(found["fd"], found["fd_spread"]), _spread(found["kvd"], found["kvd_spread"], _short)]
    return cells


def _scores(results: Results) -> str:
    columns, lower = results["columns"]["scores"], results["columns"]["lower_is_better"]
    if not columns:
        return ""
    headings = [f"{heading}{' (less is better)' if name in lower else ''}" for name, heading in columns.items()]
    rows = [
        [arm["name"], *(_spread(arm["scores"][name]["mean"], arm["scores"][name]["spread"]) for name in columns)]
        for arm in results["arms"]
    ]
    return _table(["arm", *headings], rows)


def _differences(results: Results) -> str:
    arms = [arm for arm in results["arms"] if arm["less_matched"] is not None]
    if not arms:
        return ""
    columns = results["columns"]
    distance, score = next(iter(columns["distances"].values())), next(iter(columns["scores"].values()), None)
    headings = ["arm", f"{distance} less that of {results['matched_with']}", "95 %", "p"]
    headings += [] if score is None else [f"{score}, the same", "95 %", "p"]
    rows: list[list[str]] = []
    for arm in arms:
        found = arm["less_matched"]
        rows.append([arm["name"], *_paired(found["distance"]), *(_paired(found["score"]) if score else [])])
    return _table(headings, rows)


def _paired(found: Results) -> list[str]:
    low, high = found["interval"]
    return [_signed(found["difference"]), f"{_signed(low)} to {_signed(high)}", f"{found['p']:.3f}"]


def _published(results: Results) -> str:
    if not results["published"]:
        return ""
    rows = [
        [
            figure["system"],
            figure["measure"],
            NOT_KNOWN if figure["value"] is None else f"{figure['value']:g}",
            "yes" if figure["why_not_comparable"] is None else f"no: {figure['why_not_comparable']}",
        ]
        for figure in results["published"]
    ]
    return _table(["published", "measure", "value", "comparable with the figures above"], rows)


def _notes(results: Results) -> str:
    notes = [f"Deviates from the protocol: {deviation}." for deviation in results["deviations"]]
    columns = results["columns"]["distances"]
    for name, found in results["floor"].items():
        if found["value"] is None:
            notes.append(f"The floor of {columns[name]} at n = {found['n']} is {NOT_KNOWN}: {found['reason']}.")
        else:
            notes.append(f"The floor of {columns[name]}: {found['n']} real clips against as many others.")
    notes.append(
        "Distances are biased by the number of clips: compare them with the floor and at equal n only. KVD is not."
    )
    return "\n".join(notes)


def _short(value: float) -> str:
    """For values of any size, such as KVD's."""
    return f"{value:.3g}"


def _number(value: float) -> str:
    """Three decimals below 10, fewer above."""
    decimals = 3 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}"


def _spread(value: float | None, spread: float | None, shown: Callable[[float], str] = _number) -> str:
    if value is None:
        return NOT_KNOWN
    return shown(value) if spread is None else f"{shown(value)} ±{shown(spread)}"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{_number(value)}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    widths = [max(len(str(row[i])) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [
        " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headings, *rows)
    ]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)
