"""A single process with the networks of a model; several of them are `Ranks`."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from sampler import ImageDenoiser, VideoDenoiser
from service.catalog.model_entry import ModelEntry
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation
from worker.networks import cpu_tuning
from worker.networks.caching import StepDone, caching
from worker.networks.loading import AnyModels, default_device, load


class OneProcess:
    """
    Args:
        device: of the networks; None: the GPU if there is one, else the CPU.

    Attributes:
        count: processes that compute each clip.
        fingerprint: of the number of processes, on which rounding depends.
    """

    count = 1
    fingerprint = ""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or default_device()

    def load(self, entry: ModelEntry) -> AnyModels:
        """Raises as `worker.networks.loading.load`."""
        if self.device.type == "cpu":
            cpu_tuning.tune_process(entry.cpu_threads)
        return load(entry, self.device)

    def use_loras(self, models: AnyModels, loras: Sequence[LoraUse]) -> None:
        """As `LoraSwitch.use`, in all processes."""
        models.loras.use(loras)

    def split(self, image: ImageDenoiser, video: VideoDenoiser) -> None:
        """Have the denoisers of a new job call their networks in all processes."""

    def caching(self, models: AnyModels, generation: Generation, *, off: bool) -> AbstractContextManager[StepDone]:
        """As `worker.networks.caching.caching`, in all processes."""
        return caching(models, generation, off=off)

    def free_others(self) -> None:
        """Give unused memory of the other processes back."""

    def __str__(self) -> str:
        """For people: the GPU's name, or `CPU` with its number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'' if threads == 1 else 's'}"
