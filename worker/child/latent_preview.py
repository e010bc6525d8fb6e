"""From the latents of a step to a preview: the frames of the autoencoder's previewer as a WebP file."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from sampler import Step
from worker.child.previews import webp
from worker.networks.loading import AnyModels, Models
from worker.networks.preview import HostCopy, Previewer, stride
from worker.networks.video_transformers.preview import TemporalPreviewer

log = logging.getLogger("ivmix.child")


@dataclass(frozen=True)
class LatentPreview:
    """A preview whose frames may still be on their way from the device."""

    copy: HostCopy
    frame_ms: float

    @property
    def is_ready(self) -> bool:
        return self.copy.is_complete

    def encode(self) -> bytes | None:
        return webp(self.copy.frames, self.frame_ms)


class StepPreviewer:
    """Starts previews of steps.

    Attributes:
        cost_s: seconds that one of a clip of the default size takes, measured.
    """

    def __init__(self, models: AnyModels) -> None:
        is_pair = isinstance(models, Models)
        device = models.device
        self._previewer = Previewer(models.vae, device) if is_pair else TemporalPreviewer(models.autoencoder, device)
        self._frames_of_latent = 1 if is_pair else models.autoencoder.frames
        noise = torch.randn(models.latents_shape(), generator=torch.Generator().manual_seed(0))
        trial = Step(0, 1, noise.to(models.device))
        self.cost_s = min(self._seconds(trial) for _ in range(3))  # the first one also loads kernels and codecs

    def _seconds(self, step: Step) -> float:
        began = time.perf_counter()
        preview = self.start(step, 8)
        while not preview.is_ready:
            time.sleep(0.0001)
        preview.encode()
        return time.perf_counter() - began

    def start(self, step: Step, fps: int) -> LatentPreview:
        """Queue the work on the device, and wait for nothing."""
        latents = step.estimate
        shown_ms = 1000 * stride(latents.shape[2]) * self._frames_of_latent / fps
        return LatentPreview(self._previewer.frames(latents), shown_ms)


def open_previewer(models: AnyModels) -> StepPreviewer | None:
    """None, with a warning, if this model's autoencoder gives nothing to show."""
    began = time.perf_counter()
    try:
        previewer = StepPreviewer(models)
    except Exception:  # a video without previews is better than a worker that does not start
        log.warning("no previews: they cannot be fitted to the autoencoder of %s", models.entry.id, exc_info=True)
        return None
    log.info("previews fitted in %.1f s; one takes %.0f ms", time.perf_counter() - began, 1000 * previewer.cost_s)
    return previewer
