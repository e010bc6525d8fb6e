"""Results as text, in Markdown's tables, which terminals show well too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.paper.facts import NOT_KNOWN
from benchmarks.paper.results import Results

FLOOR = "real against real"


def text(results: Results) -> str:
    """Everything but the seconds, which are other ones in every run."""
    parts = [_heading(results), _numbers(results), _differences(results), _published(results), _notes(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def seconds_text(results: Results) -> str:
    made = results["made"]
    rows = [[name, f"{seconds:.2f}"] for name, seconds in made["seconds_per_clip"].items()]
    return f"Made by {', '.join(made['by'])} on {', '.join(made['devices'])}.\n\n{_table(['arm', 's a clip'], rows)}\n"


def _heading(results: Results) -> str:
    about = f"{results['n']} prompts, {results['clips']} clips of each, model {results['model']}"
    return f"{results['title']}\n{about}; measured on {results['measured']} files."


def _numbers(results: Results) -> str:
    columns, of_floor = results["columns"], results["floor"]
    headings = ["arm", "calls"]
    for heading in columns["distances"].values():
        headings += [heading, f"its KVD x {KVD_UNIT:g}"]
    headings += list(columns["scores"].values())
    rows = [_row(arm, columns) for arm in results["arms"]]
    real = [FLOOR, ""]
    for name in columns["distances"]:
        real += [_spread(of_floor[name]["value"], of_floor[name]["spread"]), "0 expected"]
    rows.append(real + [""] * len(columns["scores"]))
    return _table(headings, rows)


KVD_UNIT = 1000


def _row(arm: Results, columns: Results) -> list[str]:
    calls = arm["calls"]
    cells = [arm["name"], NOT_KNOWN if calls is None else f"{calls['image']} + {calls['video']}"]
    for name in columns["distances"]:
        found = arm["distances"][name]
        kvd_spread = None if found["kvd_spread"] is None else KVD_UNIT * found["kvd_spread"]
        cells += [_spread(found["fd"], found["fd_spread"]), _spread(KVD_UNIT * found["kvd"], kvd_spread)]
    return cells + [_spread(arm["scores"][name]["mean"], arm["scores"][name]["spread"]) for name in columns["scores"]]


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


def _spread(value: float | None, spread: float | None) -> str:
    if value is None:
        return NOT_KNOWN
    return _number(value) if spread is None else f"{_number(value)} ±{_number(spread)}"


def _number(value: float) -> str:
    """Three decimals below 10, fewer above."""
    decimals = 3 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{_number(value)}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    widths = [max(len(str(row[i])) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [" | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headings, *rows)]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)
