"""`ivmix doctor`: prints one line per check, and what to do about those that fail."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.text import Text

from service.doctor.examination import examine
from service.doctor.finding import Finding, Level

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
WIDTH = max(map(len, Level))


def run(*, as_json: bool) -> int:
    """Returns 1 if there is a problem, else 0."""
    console, found = Console(soft_wrap=True, highlight=False), list[Finding]()
    for finding in examine():
        found.append(finding)
        if not as_json:
            _print(console, finding)
    problems = sum(finding.level is Level.PROBLEM for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "checks": [asdict(finding) for finding in found]}, indent=2))
    else:
        warnings = sum(finding.level is Level.WARNING for finding in found)
        console.print(f"{len(found)} checks: {problems} problems, {warnings} warnings")
    return 1 if problems else 0


def _print(console: Console, finding: Finding) -> None:
    line = Text(f"{finding.level:<{WIDTH}}", style=STYLES[finding.level])
    line.append(f"  {finding.check}: {finding.message}", style="default")
    console.print(line)
    if finding.advice:
        console.print(Text(f"{'':<{WIDTH}}  -> {finding.advice}"))
