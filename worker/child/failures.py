"""Maps exceptions of the engine to the error of the job. Details go to the log, not to the client."""

from __future__ import annotations

import logging

import torch

from sampler import InvalidSetting, LatentsNotFinite
from worker.child.reference_latents import UnusableReference
from worker.messages import INTERNAL_ERROR, Failed
from worker.networks.lora_switch import LoraNotUsable
from worker.networks.not_finite import NotFinite
from worker.networks.text_encoder import PromptTooLong

log = logging.getLogger("ivmix.child")

OUT_OF_MEMORY = "Not enough GPU memory for this size and num_frames, even in low-memory mode; lower one of them."


def failed_message(e: Exception, device: torch.device) -> Failed:
    """The `Failed` message for an exception raised while working on a job."""
    if failed := expected_failure(e):
        if failed.code in ("not_finite", "out_of_memory"):
            log.error("job failed: %s", failed.code, exc_info=e)
        return failed
    log.error("job failed", exc_info=e)
    return Failed("internal_error", INTERNAL_ERROR, can_retry=True, is_broken=is_broken(e, device))


def expected_failure(e: Exception) -> Failed | None:
    """None if the exception is a bug, or a fault of the machine."""
    match e:
        case LatentsNotFinite():
            return Failed("not_finite", _diverged(e), can_retry=False)
        case NotFinite():
            return Failed("not_finite", e.message, can_retry=False)
        case PromptTooLong():
            return Failed("prompt_too_long", f"A prompt is too long: {e}.", can_retry=False)
        case InvalidSetting():  # final, the client can change the request; any other ValueError is a bug
            return Failed("invalid_input", str(e), can_retry=False)
        case LoraNotUsable():
            return Failed("invalid_input", e.message, can_retry=False)
        case UnusableReference():
            return Failed(e.code, e.message, can_retry=False)
        case torch.OutOfMemoryError():
            return Failed("out_of_memory", OUT_OF_MEMORY, can_retry=False)
        case _:
            return None


def _diverged(e: LatentsNotFinite) -> str:
    models = " and ".join(sorted({f"the {call.model} model" for call in e.move.calls})) or "new noise"
    return (
        f"Sampling diverged: NaN or infinity in step {e.step + 1}, after {models}. Lower guidance_scale; if other "
        "prompts fail in step 1 as well, the model's weights are broken or overflow in float16."
    )


def is_broken(e: Exception, device: torch.device) -> bool:
    """Whether the process must be replaced: after most CUDA errors every further CUDA call in it fails."""
    if isinstance(e, torch.AcceleratorError):
        return True
    if device.type == "cpu":
        return False
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return True
    return False
