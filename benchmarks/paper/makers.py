"""What makes clips: this process (`local_maker`), or a running service (`service_maker`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.paper.arms import Arm, Fields
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.run_folder import ClipKey


@dataclass(frozen=True)
class Order:
    """A clip that is wanted: a request's fields with its prompt and seed."""

    key: ClipKey
    arm: Arm
    prompt: str
    seed: int

    @property
    def request(self) -> Fields:
        return {**self.arm.fields, "prompt": self.prompt, "seed": self.seed}


@dataclass(frozen=True)
class Batch:
    """Clips of one arm that are sampled together, and which of them are still missing.

    A batch is always sampled whole, so that a clip is the same after a restart, to the last bit.
    """

    orders: tuple[Order, ...]
    missing: frozenset[ClipKey]


@dataclass(frozen=True)
class Made:
    """A finished clip.

    Args:
        files: content by suffix.
        seconds: of inference.
        device: for people.
        cpu_seconds: of this process, for a machine that does other things too; None for a service.
    """

    files: Mapping[str, bytes]
    seconds: float
    device: str
    cpu_seconds: float | None = None


Save = Callable[[Order, Made], None]


class Maker(Protocol):
    """Makes the missing clips of batches, and calls `save` with each as it is done."""

    @property
    def model(self) -> str: ...

    @property
    def weights(self) -> str | None:
        """A digest of the model's weights; None if it is not known."""
        ...

    @property
    def made_by(self) -> str: ...

    def own_settings(self) -> Mapping[str, object]:
        """The model's sampler settings for `iv-mixed`."""
        ...

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises InvalidParameter if the model cannot draw or read one of them, as far as that is known here."""
        ...

    def network_calls(self, fields: Fields) -> Mapping[str, int]:
        """Calls of each network for one clip. Raises InvalidParameter or RequestError if it cannot be made."""
        ...

    def make(self, batches: Iterable[Batch], suffixes: frozenset[str], save: Save) -> None: ...
