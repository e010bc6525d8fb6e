"""Results as tables and notes: Markdown, which terminals show well too, or HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.paper.facts import NOT_KNOWN
from benchmarks.paper.results import Results

FLOOR = "real against real"


@dataclass(frozen=True)
class Table:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.headings))]
        padded = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in lines]
        padded.insert(1, " | ".join("-" * width for width in widths))
        return "\n".join(f"| {line} |" for line in padded)

    @property
    def html(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.headings)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


Section = Table | str


def sections(results: Results) -> list[Section]:
    """Everything but the seconds, which are other ones in every run."""
    found = [
        _heading(results),
        _distances(results),
        _differences(results),
        _scores(results),
        _published(results),
        _notes(results),
    ]
    return [section for section in found if section is not None]


def text(parts: Sequence[Section]) -> str:
    return "\n\n".join(part if isinstance(part, str) else part.markdown for part in parts) + "\n"


def html(parts: Sequence[Section]) -> str:
    """Lines of a text become paragraphs."""
    found = (part.html if isinstance(part, Table) else _paragraphs(part) for part in parts)
    return "".join(found)


def _paragraphs(lines: str) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines.splitlines())


def seconds(results: Results) -> list[Section]:
    made = results["made"]
    rows: list[list[str]] = []
    for name, mean in made["seconds_per_clip"].items():
        cpu = made["cpu_seconds_per_clip"].get(name)
        rows.append([name, f"{mean:.2f}", NOT_KNOWN if cpu is None else f"{cpu:.2f}"])
    heading = f"Made by {', '.join(made['by'])} on {', '.join(made['devices'])}."
    return [heading, Table(["arm", "s a clip", "CPU s"], rows)]


def _heading(results: Results) -> str:
    about = f"{results['n']} prompts, {results['clips']} clips of each, model {results['model']}"
    return f"{results['title']}\n{about}; measured on {results['measured']} files."


def _distances(results: Results) -> Table:
    columns, of_floor = results["columns"]["distances"], results["floor"]
    headings = ["arm", "image + video calls"]
    real = [FLOOR, ""]
    for name, heading in columns.items():
        headings += [f"{heading} ↓", f"KVD of {name} ↓"]
        real += [_spread(of_floor[name]["value"], of_floor[name]["spread"]), "0 expected"]
    return Table(headings, [*(_distance_row(arm, list(columns)) for arm in results["arms"]), real])


def _distance_row(arm: Results, spaces: Sequence[str]) -> list[str]:
    calls = arm["calls"]
    cells = [arm["name"], NOT_KNOWN if calls is None else f"{calls['image']} + {calls['video']}"]
    for name in spaces:
        found = arm["distances"][name]
        cells += [_spread(found["fd"], found["fd_spread"]), _spread(found["kvd"], found["kvd_spread"], _short)]
    return cells


def _scores(results: Results) -> Table | None:
    columns, lower = results["columns"]["scores"], results["columns"]["lower_is_better"]
    if not columns:
        return None
    headings = [f"{heading} {'↓' if name in lower else '↑'}" for name, heading in columns.items()]
    rows = [
        [arm["name"], *(_spread(arm["scores"][name]["mean"], arm["scores"][name]["spread"]) for name in columns)]
        for arm in results["arms"]
    ]
    return Table(["arm", *headings], rows)


def _differences(results: Results) -> Table | None:
    arms = [arm for arm in results["arms"] if arm["less_matched"] is not None]
    if not arms:
        return None
    columns = results["columns"]
    distance, score = next(iter(columns["distances"].values())), next(iter(columns["scores"].values()), None)
    headings = ["arm", f"{distance} less that of {results['matched_with']}", "95 %", "p"]
    headings += [] if score is None else [f"{score}, the same", "95 %", "p"]
    rows: list[list[str]] = []
    for arm in arms:
        found = arm["less_matched"]
        rows.append([arm["name"], *_paired(found["distance"]), *(_paired(found["score"]) if score else [])])
    return Table(headings, rows)


def _paired(found: Results) -> list[str]:
    low, high = found["interval"]
    return [_signed(found["difference"]), f"{_signed(low)} to {_signed(high)}", f"{found['p']:.3f}"]


def _published(results: Results) -> Table | None:
    if not results["published"]:
        return None
    rows = [
        [
            figure["system"],
            figure["measure"],
            NOT_KNOWN if figure["value"] is None else f"{figure['value']:g}",
            "yes" if figure["why_not_comparable"] is None else f"no: {figure['why_not_comparable']}",
        ]
        for figure in results["published"]
    ]
    return Table(["published", "measure", "value", "comparable with the figures above"], rows)


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
