"""Prints a history: terminal states, faults with their recovery times, and violations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.faults.checker import Violation, ends_of
from tests.faults.fault_kinds import ALL_KINDS
from tests.faults.history import Line

# What counts as recovered. VICTIM: the affected video runs again or is terminal. EXIT: the process has exited.
# WEBHOOK: a webhook was delivered. Every other kind: a video was completed.
VICTIM = {
    *("kill -9 child", "kill -9 parent", "frozen parent", "frozen worker"),
    *("Redis silent to a worker", "queue entry lost", "scratch disk full", "record of 0.1"),
}
LATE = 200  # a fault's line is written at most this many lines after it began
EXIT = {"SIGTERM", "SIGTERM twice"}
WEBHOOK = {"receiver down", "receiver slow", "receiver answers 410", "kill -9 dispatcher"}
NOTHING = {
    "clock skew",
    "corrupted record",
    "job queued twice",
    "kill -9 maintenance",
    "second ivmix up",
    "key revoked",
}  # has no visible recovery


def show(lines: Sequence[Line], violations: Sequence[Violation], console: Console) -> None:
    ends = ends_of(lines)
    accepted = {line["id"] for line in lines if line["what"] == "submit" and line.get("id")}
    faults = [line for line in lines if (line["who"], line["what"]) == ("nemesis", "fault")]
    console.print(_jobs(ends, accepted, lines))
    console.print(_faults(lines, faults))
    webhooks = [line for line in lines if line["who"] == "receiver"]
    answers = Counter(line["answer"] or "none" for line in webhooks)
    videos = {line["id"] for line in webhooks if "id" in line}
    console.print(f"webhooks: {len(webhooks)} attempts for {len(videos)} videos, answers {dict(answers)}")
    console.print(f"accepted by clients: {len(accepted)}\nfaults: {len(faults)}\nviolations: {len(violations)}")
    for violation in violations:
        console.print(f"  {violation.invariant} {violation.id}: {violation.text}", style="red", markup=False)


def _jobs(ends: dict[str, str], accepted: set[str], lines: Sequence[Line]) -> Table:
    table = Table("terminal state", "videos", title="videos")
    codes = {line["id"]: line.get("code") for line in lines if line["what"] == "poll" and line.get("code")}
    counted = Counter(f"{end} {codes.get(video_id) or ''}".strip() for video_id, end in ends.items())
    for end, count in counted.most_common():
        table.add_row(end, str(count))
    table.add_row("accepted, not terminal", str(len(accepted - set(ends))))
    return table


def _faults(lines: Sequence[Line], faults: Sequence[Line]) -> Table:
    table = Table("fault", "times", "missed", "median s", "worst s", title="faults and seconds until recovery")
    missed = Counter(line["kind"] for line in lines if line["what"] == "missed")
    took = recoveries(lines)
    for kind in ALL_KINDS:
        count = sum(fault["kind"] == kind for fault in faults)
        seconds = took.get(kind, [])
        figures = (f"{median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("", "")
        if count or missed[kind]:
            table.add_row(kind, str(count), str(missed[kind] or ""), *figures)
    return table


def recoveries(lines: Sequence[Line]) -> dict[str, list[float]]:
    """Seconds by kind, from the fault for VICTIM and EXIT kinds, from its repair for the others."""
    found: dict[str, list[float]] = defaultdict(list)
    executions: dict[str, str | None] = {}
    for i, line in enumerate(lines):
        if line["who"] == "observer":
            executions[line["id"]] = line["execution_id"]
        kind = line.get("kind")
        if line["who"] != "nemesis" or kind in NOTHING or kind not in ALL_KINDS:
            continue
        if line["what"] == ("fault" if kind in VICTIM | EXIT else "repaired"):
            since = line.get("at", line["t"]) if line["what"] == "fault" else line["t"]
            later = [after for after in lines[max(0, i - LATE) :] if after["t"] >= since]
            end = _recovered(later, line, executions.get(line.get("victim", "")))
            if end is not None:
                found[kind].append(end - since)
    return found


def _recovered(later: Sequence[Line], fault: Line, execution: str | None) -> float | None:
    for line in later:
        if fault["kind"] in WEBHOOK:
            is_recovered = line["who"] == "receiver" and line["answer"] in (204, 410)
        elif fault["kind"] in EXIT:
            is_recovered = (line["what"], line.get("name")) == ("ended", fault["target"])
        elif line["who"] != "observer":
            continue
        elif fault["kind"] in VICTIM:
            is_victim = line["id"] == fault["victim"]
            is_recovered = is_victim and line["state"] != "queued" and line["execution_id"] != execution
            is_recovered |= is_victim and line["state"] not in ("queued", "running")
        else:
            is_recovered = line["state"] == "completed"
        if is_recovered:
            return line["t"]
    return None
