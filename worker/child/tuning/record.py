"""What was measured, as files next to the weights: one folder per model, card, driver, versions and size of clip."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError

import service
from service.catalog.memory_options import MemoryOptions
from service.catalog.optimise import Optimise
from service.frozen_model import FrozenModel
from service.process.folder_lock import FolderLock
from service.settings import Settings
from worker.child.engine import Engine
from worker.child.fingerprint import weights_digest

log = logging.getLogger("ivmix.child")

FILE, MAX_BYTES = "result.json", 2**20
DRIVER_FILE = Path("/proc/driver/nvidia/version")


class TuningKey(FrozenModel):
    """What a result is valid for. If any of it changes, it is measured again."""

    model: str
    weights: str
    card: str
    driver: str
    versions: dict[str, str]
    dtype: str
    memory: MemoryOptions
    clip: tuple[int, int, int]
    """Width, height and frames of the model's default."""

    @classmethod
    def of(cls, engine: Engine) -> TuningKey:
        entry, models = engine.models.entry, engine.models
        width, height = map(int, entry.sizes[0].split("x"))
        return cls(
            model=entry.id,
            weights=weights_digest(models),
            card=engine.device_name,
            driver=_driver() if models.device.type == "cuda" else platform.machine(),
            versions={
                "ivmix": service.__version__,
                "torch": torch.__version__,
                "diffusers": version("diffusers"),
                "cuda": str(torch.version.cuda),
            },
            dtype=str(models.dtype),
            memory=entry.memory,
            clip=(width, height, int(entry.num_frames.default)),
        )


class Measured(FrozenModel):
    """One configuration."""

    optimise: Optimise
    milliseconds: dict[str, float] = {}
    """Of one call of each network, with both halves of guidance."""
    seconds_per_clip: float | None = None
    """Of all network calls of the model's default clip; None if it was not measured."""
    error: float | None = None
    """Relative L2 distance to float32, the largest of all calls."""
    problem: str = ""
    """Why it cannot be taken."""


class TuningRecord(FrozenModel):
    key: TuningKey
    chosen: Optimise
    """The fastest so far of those without a problem."""
    results: tuple[Measured, ...] = ()
    measured_frames: int
    """Fewer than those of the default clip where a call was slow, or float32 did not fit into memory."""
    seconds: float = 0.0
    """Spent so far."""
    trying: Optimise | None = None
    """Is being measured; None at the end."""

    @property
    def is_finished(self) -> bool:
        return self.trying is None

    def failed(self, problem: str) -> TuningRecord:
        """The end of a record whose last configuration was not measured."""
        last = (Measured(optimise=self.trying, problem=problem),) if self.trying else ()
        return self.model_copy(update={"results": (*self.results, *last), "trying": None})

    @property
    def summary(self) -> str:
        """What was chosen, and what it gains, for people."""
        seconds = {result.optimise: result.seconds_per_clip for result in self.results if result.seconds_per_clip}
        first, best = (seconds.get(optimise) for optimise in (self.results[0].optimise, self.chosen))
        gain = f", {best:.3g} s of network calls per clip instead of {first:.3g} s" if best and first else ""
        return f"{self.chosen}{gain}; {len(self.results)} configurations in {self.seconds:.0f} s"


class TuningFiles:
    """The record of one key: in IVMIX_WEIGHTS_DIR, or in IVMIX_DATA_DIR where that cannot be written."""

    def __init__(self, settings: Settings, key: TuningKey) -> None:
        digest = hashlib.sha256(key.model_dump_json().encode()).hexdigest()[:16]
        name = f"{re.sub('[^A-Za-z0-9._-]', '_', key.model)}-{digest}"
        self._key = key
        self._folders = [root / "tuned" / name for root in dict.fromkeys((settings.weights_dir, settings.data_dir))]

    def read(self) -> TuningRecord | None:
        """None if there is none. One that is damaged, or of another key, is ignored with a warning."""
        for file in (folder / FILE for folder in self._folders):
            try:
                with file.open("rb") as opened:
                    found = TuningRecord.model_validate_json(opened.read(MAX_BYTES))
            except FileNotFoundError:
                continue
            except (OSError, ValidationError) as e:
                log.warning("%s cannot be read and is ignored: %s", file, " ".join(str(e).split())[:200])
                continue
            if found.key == self._key:
                return found
            log.warning("%s belongs to another model, card or version and is ignored", file)
        return None

    @contextmanager
    def locked(self, timeout_s: float) -> Generator[Path | None]:
        """The folder to write to, for one process at a time; None if no folder can be written to.

        Raises FolderInUse if another process holds it for longer than `timeout_s`.
        """
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = FolderLock.acquire(folder, timeout_s=timeout_s)
            except OSError as e:
                log.warning("%s cannot be written: %s", folder, e.strerror or type(e).__name__)
                continue
            try:
                yield folder
            finally:
                lock.release()
            return
        yield None


def write(record: TuningRecord, folder: Path | None) -> None:
    """Replace the record in one step. A disk that is full costs the next start another measurement."""
    if folder is None:
        return
    part = folder / f"{FILE}.part"
    try:
        part.write_text(record.model_dump_json(indent=2))
        os.replace(part, folder / FILE)
    except OSError as e:
        log.warning("%s cannot be written: %s", folder / FILE, e.strerror or type(e).__name__)


def _driver() -> str:
    """The version of NVIDIA's driver, where its kernel module says it."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", DRIVER_FILE.read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"
