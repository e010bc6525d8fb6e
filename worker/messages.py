"""Messages between parent and child, as plain data that the parent can import without torch."""

from __future__ import annotations

from dataclasses import dataclass

from service.jobs.model import Generation, Job, Output, Phase


@dataclass(frozen=True)
class Run:
    """Work on this job. `may_resume`: an earlier execution made progress and may have stored a checkpoint."""

    job: Job
    execution_id: str
    may_resume: bool = False

    @property
    def generation(self) -> Generation:
        return self.job.generation


@dataclass(frozen=True)
class Cancel:
    """Stop this execution after the current step. Ignored if the child works on another one."""

    execution_id: str


@dataclass(frozen=True)
class Drain:
    """Like Cancel, but store a checkpoint first: another worker will resume the job."""

    execution_id: str


@dataclass(frozen=True)
class Ready:
    """The models are loaded."""

    seconds: float  # spent loading the models


@dataclass(frozen=True)
class Progress:
    """A phase began or a step ended: `step` of `total` sampling steps are done."""

    phase: Phase
    step: int
    total: int


@dataclass(frozen=True)
class Sampled:
    """All steps are done and the networks are free. Decoding and upload are reported on the second pipe."""

    execution_id: str


@dataclass(frozen=True)
class Done:
    """The video is stored."""

    output: Output
    timings: dict[str, float]  # seconds per phase
    peak_memory_mb: float | None  # MiB; None if not measured


@dataclass(frozen=True)
class Failed:
    """The job failed with this error code and text. `is_broken`: the child process must be replaced."""

    code: str
    message: str
    can_retry: bool
    is_broken: bool = False


@dataclass(frozen=True)
class Stopped:
    """The answer to Cancel and Drain."""


INTERNAL_ERROR = "The video could not be generated because of an internal error; see the server log."

Order = Run | Cancel | Drain
Message = Ready | Progress | Sampled | Done | Failed | Stopped
