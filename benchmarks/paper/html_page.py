"""The results as one HTML file that needs nothing else: tables, plots and contact sheets."""

from __future__ import annotations

from html import escape

from benchmarks.paper.contact_sheet import ranked_prompts, strip
from benchmarks.paper.networks import ClipNetwork
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.results import Question, Results, chosen_arms
from benchmarks.paper.run_folder import ClipKey, RunFolder
from benchmarks.paper.svg_plots import Bar, Point, bars, scatter
from benchmarks.paper.table import FLOOR, html, seconds, sections

EXTREMES = 3  # prompts of each contact sheet

STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e}
table{border-collapse:collapse;font-size:12px;margin:1rem 0;display:block;overflow-x:auto;white-space:nowrap}
th,td{border-bottom:1px solid #d8d8dc;padding:.2rem .6rem;text-align:left}p{margin:.2rem 0}
svg{max-width:100%;height:auto}figure{margin:0 0 .4rem}figcaption{font-size:12px}
img{display:block;max-width:100%}h3{margin:1.2rem 0 .3rem;font-size:15px}"""


def page(folder: RunFolder, question: Question, network: ClipNetwork, results: Results) -> str:
    parts = [f"<h1>{escape(results['title'])}</h1>", html(sections(results))]
    parts += [f"<h2>{escape(name)}</h2><figure>{plot}</figure>" for name, plot in plots(results).items()]
    parts.append(f"<h2>What it took</h2>{html(seconds(results))}")
    parts.append(_sheets(folder, question, network))
    head = f'<meta charset="utf-8"><title>{escape(results["title"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def plots(results: Results) -> dict[str, str]:
    """Bars of every distance with the floor as a line, bars of the first score, and one measure against the other."""
    columns, arms, found = results["columns"], results["arms"], dict[str, str]()
    for name, heading in columns["distances"].items():
        distances = [(arm["name"], arm["distances"][name]) for arm in arms]
        values = [Bar(arm, each["fd"], each["fd_spread"]) for arm, each in distances]
        value = results["floor"][name]["value"]
        found[heading] = bars(heading, values, None if value is None else (FLOOR, value))
    score = next(iter(columns["scores"]), None)
    if score is None:
        return found
    scores = [(arm["name"], arm["scores"][score]) for arm in arms]
    x_name, y_name = next(iter(columns["distances"].values())), columns["scores"][score]
    found[y_name] = bars(y_name, [Bar(arm, each["mean"], each["spread"]) for arm, each in scores])
    distance = next(iter(columns["distances"]))
    points = [Point(arm["name"], arm["distances"][distance]["fd"], arm["scores"][score]["mean"]) for arm in arms]
    name = f"{y_name} against {x_name}"
    return found | {name: scatter(name, points, x_name, y_name)}


def _sheets(folder: RunFolder, question: Question, network: ClipNetwork) -> str:
    arms = chosen_arms(folder, question.arms)
    ranked = ranked_prompts(folder, question, network, arms)
    names = [arm.name for arm in arms]
    count = min(EXTREMES, len(ranked) // 2)
    best, worst = ranked[:count], ranked[::-1][:count]
    parts: list[str] = []
    for heading, prompts in (("Best prompts", best), ("Worst prompts", worst)):
        parts.append(f"<h2>{heading} of {escape(names[0])}</h2>")
        parts += [_sheet(folder, prompt, names, question.suffix) for prompt in prompts]
    return "".join(parts)


def _sheet(folder: RunFolder, prompt: Prompt, arms: list[str], suffix: str) -> str:
    """The first clip of each arm, all from the same noise."""
    figures = [
        f'<figure><img alt="{escape(arm)}" src="{strip(folder, ClipKey(arm, prompt.id, 0), suffix)}">'
        f"<figcaption>{escape(arm)}</figcaption></figure>"
        for arm in arms
    ]
    return f"<h3>{escape(prompt.id)}: {escape(prompt.text)}</h3>{''.join(figures)}"
