"""What happens when the memory runs out: once it goes on with less, then it says so; the engine stays usable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sampler import InvalidSetting
from service.jobs.model import Phase
from tests.factories import make_generation
from worker.child.engine import Engine

FRAMES = 2
GENERATION = make_generation(num_frames=FRAMES, num_inference_steps=2)


@contextmanager
def room_for(network: nn.Module, images: int) -> Iterator[list[int]]:
    """A network that runs out of memory above so many images at once; yields the sizes of the calls that fitted."""
    fitted: list[int] = []

    def check(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["sample"]
        size = x.shape[0] * (x.shape[2] if x.ndim == 5 else 1)
        if size > images:
            raise torch.OutOfMemoryError(f"tried to allocate {size} images")
        fitted.append(size)

    hook = network.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield fitted
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def undisturbed(loaded_engine: Engine) -> Tensor:
    return loaded_engine.generate(GENERATION).frames


def test_image_model_without_room_is_called_frame_by_frame(engine: Engine, undisturbed: Tensor) -> None:
    with room_for(engine.models.image_unet, 1) as fitted:
        frames = engine.generate(GENERATION).frames
    assert set(fitted) == {1}
    assert (frames.int() - undisturbed.int()).abs().max() <= 2  # other batches, other rounding


def test_video_model_without_room_is_called_with_one_half_of_the_guidance_at_a_time(
    engine: Engine, undisturbed: Tensor
) -> None:
    with room_for(engine.models.video_unet, FRAMES) as fitted:
        frames = engine.generate(GENERATION).frames
    assert max(fitted) == FRAMES
    assert (frames.int() - undisturbed.int()).abs().max() <= 2


def test_decoder_without_room_decodes_one_frame_at_a_time_and_no_step_is_done_again(
    engine: Engine, undisturbed: Tensor
) -> None:
    steps: list[int] = []
    phases: list[Phase] = []

    def decode(z: Tensor, **kwargs: Any) -> Any:
        if len(z) > 1:
            raise torch.OutOfMemoryError
        return original(z, **kwargs)

    original, engine.models.vae.decode = engine.models.vae.decode, decode
    try:
        frames = engine.generate(
            GENERATION, lambda phase, *_: phases.append(phase), on_step=lambda c: steps.append(c.step)
        ).frames
    finally:
        engine.models.vae.decode = original
    assert steps == [1, 2]
    assert phases.count(Phase.DECODING) == 2
    assert (frames.int() - undisturbed.int()).abs().max() <= 2


def test_clip_that_has_no_room_at_all_fails_for_good_and_the_next_one_is_made(engine: Engine) -> None:
    with room_for(engine.models.video_unet, 0), pytest.raises(torch.OutOfMemoryError) as caught:
        engine.generate(GENERATION)
    failed = engine.failed_message(caught.value)
    assert (failed.code, failed.can_retry, failed.is_broken) == ("out_of_memory", False, False)
    assert engine.generate(GENERATION).frames.shape[0] == FRAMES


def test_second_clip_without_room_is_tried_again_in_a_new_process(engine: Engine) -> None:
    """It may be innocent: something that holds memory stays behind in this process."""
    assert engine.failed_message(torch.OutOfMemoryError()).is_broken is False
    failed = engine.failed_message(torch.OutOfMemoryError())
    assert (failed.code, failed.can_retry, failed.is_broken) == ("out_of_memory", True, True)


@pytest.mark.parametrize(
    ("error", "code", "can_retry", "is_broken"),
    [
        (InvalidSetting("no such order"), "invalid_input", False, False),
        (ValueError("shapes of a network"), "internal_error", True, False),
        (RuntimeError("a bug"), "internal_error", True, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "internal_error", True, True),
    ],
)
def test_failures_say_whether_to_try_again_and_whether_the_process_is_of_any_use(
    engine: Engine, error: Exception, code: str, can_retry: bool, is_broken: bool
) -> None:
    failed = engine.failed_message(error)
    assert (failed.code, failed.can_retry, failed.is_broken) == (code, can_retry, is_broken)
