"""NaN or infinity anywhere after loading fails the job by name; it never becomes a video."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from sampler import LatentsNotFinite, seeded_noise
from service.cli.console import Steps
from service.errors import ServiceError
from service.jobs.model import Generation
from service.jobs.request import VideoRequest
from service.jobs.timestep_spacing import Spacing
from tests.tiny_models import save_model
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.generate import _generate
from worker.networks.not_finite import NotFinite
from worker.networks.optimise import vae_decode

PROMPT = "a red circle moving left on a teal background"
STEPS = 3


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(save_model("animatediff", tmp_path_factory.mktemp("models") / "model"), torch.device("cpu"))


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    """With copies of the networks that are called directly, to be broken."""
    engine, models = copy.copy(loaded), loaded.models
    encoders = {
        name: replace(getattr(models, name), encoder=copy.deepcopy(getattr(models, name).encoder))
        for name in ("image_text_encoder", "video_text_encoder")
    }
    engine.models = replace(models, vae=copy.deepcopy(models.vae), **encoders)
    return engine


@pytest.fixture(autouse=True)
def warns_again() -> Iterator[None]:
    vae_decode.warn_once.cache_clear()
    yield
    vae_decode.warn_once.cache_clear()


def generation(engine: Engine, **fields: Any) -> Generation:
    request = {"prompt": PROMPT, "seed": 3, "num_inference_steps": STEPS, "num_frames": 3, "guidance_scale": 2}
    return engine.models.entry.resolve(VideoRequest.model_validate(request | fields))


def spoil(module: torch.nn.Module, value: float) -> None:
    """One weight of the last layer."""
    parameter = [p for p in module.parameters() if p.ndim > 1][-1]
    with torch.no_grad():
        parameter[(0,) * parameter.ndim] = value


def failure(engine: Engine, wanted: Generation, **arguments: Any) -> tuple[str, str, bool]:
    with pytest.raises((NotFinite, LatentsNotFinite)) as raised:
        engine.generate(wanted, **arguments)
    failed = engine.failed_message(raised.value)
    return failed.code, failed.message, failed.can_retry


@pytest.mark.sample(3)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autoencoder_with_a_broken_weight_fails_the_job_and_is_named(
    engine: Engine, value: float, dtype: torch.dtype
) -> None:
    spoil(engine.models.vae.decoder, value)
    engine.models.vae.to(dtype)
    code, message, can_retry = failure(engine, generation(engine, sampler={"name": "ddim"}, num_inference_steps=1))
    assert (code, can_retry) == ("not_finite", False)
    assert "autoencoder (vae)" in message
    assert engine.models.vae.dtype is dtype


def test_command_line_says_it_in_one_sentence(engine: Engine, broken_when: Callable[..., None]) -> None:
    """`ivmix generate` prints the message of a ServiceError, and a traceback for other exceptions."""
    steps = Steps(Console(quiet=True))
    broken_when("image")
    with pytest.raises(ServiceError, match=r"Sampling diverged: NaN or infinity in step 1, after the image model\."):
        _generate(engine, "iv-mixed", generation(engine), steps)
    spoil(engine.models.vae.decoder, float("nan"))
    with pytest.raises(ServiceError, match=r"autoencoder \(vae\)"):
        _generate(engine, "ddim", generation(engine, sampler={"name": "ddim"}), steps)


def test_one_broken_frame_of_the_last_batch_is_enough(engine: Engine) -> None:
    """Frames are decoded in batches; the others are fine."""
    latents = torch.zeros(engine.models.latents_shape(generation(engine)))
    latents[:, :, -1] = 3e38  # finite, but not after the autoencoder's scaling
    with pytest.raises(NotFinite, match="autoencoder"):
        engine.models.decode(latents, frames_per_call=2)


def test_autoencoder_that_overflows_in_half_precision_decodes_in_float32(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    vae = engine.models.vae
    with torch.no_grad():
        vae.post_quant_conv.weight.mul_(6e4)  # beyond float16; the group norms behind it take it back
    vae.to(torch.float16)
    caplog.clear()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    latents = seeded_noise(engine.models.latents_shape(generation(engine)), 1)
    assert not vae.decode(latents[:, :, 0].half() / vae.config.scaling_factor).sample.isfinite().all()
    with caplog.at_level(logging.WARNING):
        first, again = (engine.models.decode(latents) for _ in range(2))
    expected = replace(engine.models, vae=copy.deepcopy(vae).float()).decode(latents)
    assert torch.equal(first, expected)
    assert torch.equal(first, again)
    assert first.float().std() > 0
    assert vae.dtype is torch.float16
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    (warning,) = caplog.records
    assert "overflows in torch.float16; such clips are decoded again in float32" in warning.message


def test_encoder_that_overflows_in_half_precision_encodes_in_float32(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    vae, frames = engine.models.vae, torch.full((2, 48, 48, 3), 250, dtype=torch.uint8)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(2e5).clamp_(-6e4, 6e4)  # beyond float16; group norms behind it take it back
    vae.to(torch.float16)
    expected = replace(engine.models, vae=copy.deepcopy(vae).float()).encode_frames(frames)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = engine.models.encode_frames(frames)
    assert torch.equal(found, expected)
    assert found.dtype is torch.float32
    assert vae.dtype is torch.float16
    (warning,) = caplog.records
    assert "overflows in torch.float16; such frames are encoded again in float32" in warning.message


def test_encoder_with_a_broken_weight_is_named(engine: Engine) -> None:
    spoil(engine.models.vae.encoder, float("nan"))
    with pytest.raises(NotFinite, match=r"autoencoder \(vae\) of this model returned NaN"):
        engine.models.encode_frames(torch.zeros(2, 48, 48, 3, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["image_text_encoder", "video_text_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_text_encoder_with_a_broken_weight_fails_before_sampling(engine: Engine, name: str, value: float) -> None:
    spoil(getattr(engine.models, name).encoder, value)
    steps: list[Checkpoint] = []
    code, message, _ = failure(engine, generation(engine), on_step=steps.append)
    assert code == "not_finite"
    assert name.removeprefix("video_") in message
    assert not steps


@pytest.fixture
def broken_when(engine: Engine) -> Iterator[Callable[..., None]]:
    """Makes a UNet answer with NaN in one pixel where `condition` of its timestep holds."""
    hooks: list[Any] = []

    def install(network: str, condition: Callable[[float], bool] = lambda _timestep: True) -> None:
        def spoiled(_module: Any, arguments: Any, _named: Any, output: Any) -> Any:
            answer: Tensor = output[0] if isinstance(output, tuple) else output.sample
            timestep = arguments[1] if len(arguments) > 1 else _named["timestep"]
            if condition(float(torch.as_tensor(timestep).flatten()[0])):
                answer[(-1,) * answer.ndim] = float("nan")
            return output

        unet = getattr(engine.models, f"{network}_unet")
        hooks.append(unet.register_forward_hook(spoiled, with_kwargs=True))

    yield install
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("network", "sampler"),
    [
        ("image", {"name": "iv-mixed"}),
        ("video", {"name": "iv-mixed"}),
        ("image", {"name": "fused"}),
        ("image", {"name": "ddim", "network": "image"}),
        ("video", {"name": "ddim"}),
        ("video", {"name": "zigzag"}),
        ("video", {"name": "freeinit", "iterations": 2}),
    ],
    ids=str,
)
def test_network_that_returns_nan_is_named(
    engine: Engine, broken_when: Callable[..., None], network: str, sampler: dict[str, Any]
) -> None:
    broken_when(network)
    code, message, _ = failure(engine, generation(engine, sampler=sampler))
    assert code == "not_finite"
    assert f"the {network} model" in message
    assert "in step 1" in message


def test_nan_of_the_last_step_is_caught(engine: Engine, broken_when: Callable[..., None]) -> None:
    wanted = generation(engine, sampler={"name": "ddim"}).model_copy(update={"spacing": Spacing()})
    last = engine.plan(wanted).steps[-1][0].timestep
    broken_when("video", lambda timestep: timestep == last)
    assert f"in step {STEPS}" in failure(engine, wanted)[1]


def test_nan_in_low_memory_mode_is_caught(engine: Engine, broken_when: Callable[..., None]) -> None:
    wanted, out_of_memory = generation(engine), [True]

    def once(checkpoint: Checkpoint) -> None:
        if out_of_memory:
            out_of_memory.clear()
            broken_when("image")
            raise torch.OutOfMemoryError

    assert failure(engine, wanted, on_step=once)[0] == "not_finite"


def test_run_starts_over_instead_of_going_on_from_nan(engine: Engine, tmp_path: Path) -> None:
    """On a GPU a checkpoint may be written up to two steps before NaN is noticed."""
    wanted, checkpoints = generation(engine), list[Checkpoint]()
    expected = engine.generate(wanted, on_step=checkpoints.append).frames
    bad = replace(checkpoints[0], latents=checkpoints[0].latents * float("nan"))
    bad.write(tmp_path / "checkpoint")
    assert torch.equal(engine.generate(wanted, resume=tmp_path / "checkpoint").frames, expected)
    raised = [True]

    def broken_latents(checkpoint: Checkpoint) -> None:
        if raised:
            raised.clear()
            checkpoint.latents.fill_(float("nan"))
            raise torch.OutOfMemoryError

    assert engine.generate(wanted, on_step=broken_latents).frames.shape == expected.shape
