"""`ivmix doctor`: prints one line per check, and what to do about those that fail."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.text import Text

from service.doctor.examination import examine
from service.doctor.finding import Finding, Severity

STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.PROBLEM: "bold red"}
WIDTH = max(map(len, Severity))


def run(*, as_json: bool) -> int:
    """Returns 1 if there is a problem, else 0."""
    console, found = Console(soft_wrap=True, highlight=False), list[Finding]()
    for finding in examine():
        found.append(finding)
        if not as_json:
            _print(console, finding)
    problems = sum(finding.severity is Severity.PROBLEM for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "checks": [asdict(finding) for finding in found]}, indent=2))
    else:
        warnings = sum(finding.severity is Severity.WARNING for finding in found)
        console.print(f"{len(found)} checks: {problems} problems, {warnings} warnings")
    return 1 if problems else 0


def _print(console: Console, finding: Finding) -> None:
    line = Text(f"{finding.severity:<{WIDTH}}", style=STYLES[finding.severity])
    line.append(f"  {finding.check}: {finding.message}", style="default")
    console.print(line)
    if finding.advice:
        console.print(Text(f"{'':<{WIDTH}}  -> {finding.advice}"))
