"""What went wrong in the engine, in the words of the job's record. The client learns no internals; the log has them."""

from __future__ import annotations

import logging

import torch

from sampler import InvalidSetting, LatentsNotFinite
from worker.messages import Failed
from worker.networks.text_encoder import PromptTooLong

log = logging.getLogger("ivmix.child")

OUT_OF_MEMORY = "The GPU has not enough memory for this size and length, even in low-memory mode."
NOT_FINITE = "The clip became NaN on its way; ask for a lower guidance."
UNKNOWN = "The video could not be made; the server's log says why."


def failure_of(e: Exception, device: torch.device) -> Failed:
    """The first class that fits decides."""
    match e:
        case LatentsNotFinite():
            log.error("latents are not finite", exc_info=e)
            return Failed("not_finite", NOT_FINITE, can_retry=False)
        case PromptTooLong():
            return Failed("prompt_too_long", f"A prompt is too long: {e}.", can_retry=False)
        case InvalidSetting():  # final, and the client's to change; any other ValueError is our mistake
            return Failed("invalid_input", str(e), can_retry=False)
        case torch.OutOfMemoryError():
            log.error("out of memory", exc_info=e)
            return Failed("out_of_memory", OUT_OF_MEMORY, can_retry=False)
        case _:
            log.error("job failed", exc_info=e)
            return Failed("internal_error", UNKNOWN, can_retry=True, is_broken=is_broken(e, device))


def is_broken(e: Exception, device: torch.device) -> bool:
    """Whether this process has lost its device: after most CUDA errors every further call fails, until it ends."""
    if isinstance(e, torch.AcceleratorError):
        return True
    if device.type == "cpu":
        return False
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False
