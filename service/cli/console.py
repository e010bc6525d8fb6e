"""Progress of a command: a list of steps. In a terminal each has a spinner or a bar while it runs, elsewhere it is one
plain line when it ends."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

NAME_WIDTH = 17


@dataclass
class RunningStep:
    """A running step. `done` is what its last line says."""

    name: str
    began: float = field(default_factory=time.monotonic)
    done: str = ""
    _progress: Progress | None = None
    _task: TaskID | None = None

    def update(self, detail: str, completed: float = 0, total: float | None = None) -> None:
        """Show what happens now, and a bar if there is a `total`."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, detail=detail, completed=completed, total=total)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Steps:
    """
    Args:
        may_animate: False where other lines appear in the same terminal.
    """

    def __init__(self, console: Console | None = None, *, may_animate: bool = True) -> None:
        self.console = console or Console()
        self.is_animated = may_animate and self.console.is_terminal and not self.console.is_dumb_terminal
        self._marks = ("✓", "✗") if self.console.encoding.startswith("utf") else ("+", "x")

    @contextmanager
    def step(self, name: str, detail: str = "") -> Generator[RunningStep]:
        """Run one step. If it raises, a terminal shows which one failed; the message is the caller's."""
        if not self.is_animated:
            yield (step := RunningStep(name))
            self.say(f"{name}: {step.done or detail} ({_duration(step.seconds)})")
            return
        columns = (
            SpinnerColumn("dots" if self._marks[0] == "✓" else "line"),
            TextColumn(f"{name:<{NAME_WIDTH}} {{task.fields[detail]}}"),
            _BarIfTotal(),
            TimeElapsedColumn(),
        )
        progress = Progress(*columns, console=self.console, transient=True)
        step = RunningStep(name, _progress=progress, _task=progress.add_task("", total=None, detail=detail))
        try:
            with progress:
                yield step
        except Exception:
            self._finish(self._marks[1], "red", step, detail)
            raise
        self._finish(self._marks[0], "green", step, step.done or detail)

    def say(self, text: str, style: str = "") -> None:
        """Print one line, never wrapped where others read it."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _finish(self, mark: str, style: str, step: RunningStep, said: str) -> None:
        line = Text.assemble((mark, style), f" {step.name:<{NAME_WIDTH}} {said}  ", (_duration(step.seconds), "dim"))
        self.console.print(line, soft_wrap=True)


class _BarIfTotal(ProgressColumn):
    """A bar for steps that know how much there is to do, nothing for others."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=30)

    def render(self, task: Task) -> Text | object:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Text("") if task.total is None else self._bar.render(task)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
