"""Messages between parent and child, as plain data that the parent can import without torch.

Each job has its own pipe. The parent sends Run, and may send Stop later. The child sends Progress and StorageCall,
Sampled when it is ready for the next job, and at the end Done, Failed or Stopped. A control pipe carries Ready once,
maybe after Tuning, and then the child's ends of the jobs' pipes, or CannotLoad, after which the child ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.catalog.optimise import Configuration
from service.jobs.model import Generation, Job, Output, Phase
from service.storage.metrics import StorageCall

INTERNAL_ERROR = "The video could not be generated because of an internal error; see the server log."


@dataclass(frozen=True)
class Processes:
    """How many processes of the child, one per GPU, compute each clip together."""

    count: int = 1
    on_cpu: bool = False
    """Whether they share the CPU instead."""


ONE_PROCESS = Processes()


@dataclass(frozen=True)
class Run:
    """Work on this job."""

    job: Job
    execution_id: str
    may_resume: bool = False
    """An earlier execution made progress and may have stored a checkpoint."""

    @property
    def generation(self) -> Generation:
        return self.job.generation


@dataclass(frozen=True)
class Stop:
    """Stop the job after the current step."""

    save_checkpoint: bool
    """First store a checkpoint: another worker will resume the job."""


@dataclass(frozen=True)
class Ready:
    """The models are loaded."""

    seconds: float
    """Spent loading the models."""
    device: str
    """Where they are, for people."""
    configuration: Configuration
    """How they run."""


@dataclass(frozen=True)
class Tuning:
    """The models are loaded; configurations of them are measured before Ready."""

    limit_s: float
    """After so many seconds the child is replaced by one that does not measure."""


@dataclass(frozen=True)
class CannotLoad:
    """The models did not load."""

    reason: str
    """One sentence for the operator."""
    shown: str
    """One sentence for clients, without folders of this machine."""
    is_final: bool = False
    """The same happens again until files or settings are changed."""
    details: str = ""
    """Traceback of an unexpected error."""


@dataclass(frozen=True)
class Progress:
    """A phase began or a step ended."""

    phase: Phase
    step: int
    """Finished sampling steps."""
    total: int
    """Sampling steps of the job."""
    preview: bytes | None = field(default=None, repr=False)
    """A new preview, WebP."""
    gpu_seconds: float = field(default=0.0, compare=False)
    """Of this execution so far, without steps that an earlier one had finished."""


@dataclass(frozen=True)
class Sampled:
    """All steps are done and the networks are free; decoding and upload follow."""


@dataclass(frozen=True)
class Done:
    """The video is stored."""

    output: Output
    timings: dict[str, float]
    """Seconds per phase."""
    peak_memory_mb: float | None
    """MiB; None if not measured."""


@dataclass(frozen=True)
class Failed:
    code: str
    """Error code of the job."""
    message: str
    """Error text of the job, for the client."""
    can_retry: bool
    """Another attempt may succeed."""
    is_broken: bool = False
    """The child process must be replaced."""


@dataclass(frozen=True)
class Stopped:
    """The reply to Stop."""


Report = Ready | Tuning | CannotLoad | Progress | Sampled | Done | Failed | Stopped | StorageCall
