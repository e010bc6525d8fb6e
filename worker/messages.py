"""What parent and child say to each other. Plain data, so that the parent can import it without torch."""

from __future__ import annotations

from dataclasses import dataclass

from service.jobs.model import Generation, Job, Output, Phase


@dataclass(frozen=True)
class Run:
    """`may_resume`: an earlier execution got somewhere, and may have left its state behind."""

    job: Job
    execution_id: str
    may_resume: bool = False

    @property
    def generation(self) -> Generation:
        return self.job.generation


@dataclass(frozen=True)
class Cancel:
    """Stop this execution between two steps; for any other it means nothing."""

    execution_id: str


@dataclass(frozen=True)
class Drain:
    """Like Cancel, but somebody will go on: leave the state behind."""

    execution_id: str


@dataclass(frozen=True)
class Ready:
    seconds: float  # spent loading the models


@dataclass(frozen=True)
class Progress:
    phase: Phase
    step: int
    total: int


@dataclass(frozen=True)
class Sampled:
    """The networks are free for the next job; how this one goes on is told on the second line."""

    execution_id: str


@dataclass(frozen=True)
class Done:
    output: Output
    timings: dict[str, float]  # seconds per phase
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Failed:
    """`is_broken`: this process can do no more work and wants to be replaced."""

    code: str
    message: str
    can_retry: bool
    is_broken: bool = False


@dataclass(frozen=True)
class Stopped:
    """The answer to Cancel and Drain."""


Order = Run | Cancel | Drain
Message = Ready | Progress | Sampled | Done | Failed | Stopped
