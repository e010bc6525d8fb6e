"""Plain runs against diffusers' pipelines of tiny random networks: Wan, CogVideoX, Cosmos-Predict2, Qwen-Image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sampler import (
    FlowSchedule,
    ImageDenoiser,
    IncompatibleInputs,
    NoiseSchedule,
    VideoDenoiser,
    ddim_plan,
    fused_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from sampler.prediction import alpha_at
from tests.tiny_video_transformers import (
    COGVIDEOX_SCHEDULER,
    COSMOS_SCHEDULER,
    QWEN_SCHEDULER,
    CogVideoXNetwork,
    CosmosNetwork,
    QwenNetwork,
    WanNetwork,
    cogvideox_pipeline,
    cosmos_pipeline,
    qwen_pipeline,
    resize_without_torchvision,
    texts,
    tiny_cogvideox_transformer,
    tiny_cosmos_transformer,
    tiny_qwen_transformer,
    tiny_wan_transformer,
    wan_pipeline,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of numpy, in diffusers

SHAPE = (1, 16, 3, 8, 8)  # of 9 frames of 64x64
PIXELS = {"height": 64, "width": 64}
NOISE = seeded_noise(SHAPE, 6)
STEPS = 8


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())))


def last(plan: Any, latents: Tensor, **models: Any) -> Tensor:
    *_, end = sample(latents, plan, **models)
    return end.latents


def test_wan_and_its_frames() -> None:
    cond, uncond = texts("wan")
    transformer = tiny_wan_transformer()
    pipeline = wan_pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0))
    theirs = pipeline(
        **PIXELS,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=NOISE,
        output_type="latent",
    ).frames
    network = WanNetwork(transformer)
    video = VideoDenoiser(network, cond, uncond, prediction_type="flow")
    schedule = FlowSchedule.from_config(pipeline.scheduler.config)
    found = last(ddim_plan(schedule, STEPS, guidance=5.0), NOISE, video=video)
    assert close(found, theirs)
    assert not close(last(ddim_plan(schedule, STEPS, guidance=1.0), NOISE, video=video), theirs)  # the text matters
    assert [float(t) for t in network.times[:STEPS]] == pipeline.scheduler.timesteps.tolist()


def test_cogvideox_from_zero_signal() -> None:
    cond, uncond = texts("cogvideox")
    transformer, noise = tiny_cogvideox_transformer(), seeded_noise((1, 4, 3, 4, 4), 6)
    pipeline = cogvideox_pipeline(transformer)
    theirs = pipeline(
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=6.0,
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=noise.transpose(1, 2),
        output_type="latent",
    ).frames
    schedule = NoiseSchedule.from_config(pipeline.scheduler.config)
    assert schedule == NoiseSchedule.from_config(COGVIDEOX_SCHEDULER)
    video = VideoDenoiser(CogVideoXNetwork(transformer), cond, uncond, prediction_type=schedule.prediction_type)
    plan = ddim_plan(schedule, STEPS, guidance=6.0)
    assert plan.first_alpha == 0
    assert close(last(plan, noise, video=video).transpose(1, 2), theirs)


def test_cosmos_whose_last_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its latents are x0 + sigma eps, and its guidance g is our g + 1."""
    resize_without_torchvision(monkeypatch)
    cond, uncond = texts("cosmos")
    transformer, seen = tiny_cosmos_transformer(), list[Tensor]()
    pipeline = cosmos_pipeline(transformer)
    pipeline(
        **PIXELS,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        latents=NOISE[:, :, :1].clone(),
        output_type="latent",
        callback_on_step_end=lambda _pipeline, _step, _time, kept: seen.append(kept["latents"]) or {},
    )
    sigmas = pipeline.scheduler.sigmas.tolist()
    schedule = FlowSchedule.from_config(pipeline.scheduler.config)
    assert schedule == FlowSchedule.from_config(COSMOS_SCHEDULER)
    network = CosmosNetwork(transformer)
    image = ImageDenoiser(network, cond, uncond, prediction_type="flow")
    start = NOISE[:, :, :1] * sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5
    plan = ddim_plan(schedule, STEPS, guidance=5.0, model="image")
    for step in sample(start, plan, image=image):
        theirs = seen[step.index]
        assert close(step.latents * (1 + sigmas[step.index + 1] ** 2) ** 0.5, theirs)
    assert len(network.times) == plan.calls["image"] == STEPS - 1


def test_qwen_image_with_a_dynamic_shift_and_its_tokens() -> None:
    cond, uncond = texts("qwen")
    uncond[:, 4:] = 0  # a shorter negative prompt: rows of zeros are padding
    transformer, one = tiny_qwen_transformer(), NOISE[:, :, :1]
    assert transformer.config.in_channels == 64
    pipeline = qwen_pipeline(transformer)
    packed = pipeline._pack_latents(one.transpose(1, 2), 1, 16, 8, 8)
    theirs = pipeline(
        **PIXELS,
        num_inference_steps=STEPS,
        true_cfg_scale=1.0,
        prompt_embeds=cond,
        prompt_embeds_mask=torch.ones(1, cond.shape[1]),
        latents=packed,
        output_type="latent",
    ).images
    theirs = pipeline._unpack_latents(theirs, 64, 64, 8)
    schedule = FlowSchedule.from_config(QWEN_SCHEDULER, tokens=16, time_scale=1)
    network = QwenNetwork(transformer)
    image = ImageDenoiser(network, cond, uncond, prediction_type="flow")
    assert close(last(ddim_plan(schedule, STEPS, guidance=1.0, model="image"), one, image=image), theirs)
    network.config.in_channels = 64  # as the transformer's, which are those of a token
    with pytest.raises(IncompatibleInputs, match="64 latent channels"):
        ImageDenoiser(network, cond, uncond).prepare(one)
    cut = ImageDenoiser(QwenNetwork(transformer), uncond[:, :4], uncond[:, :4], prediction_type="flow")
    padded = ImageDenoiser(QwenNetwork(transformer), uncond, uncond, prediction_type="flow")
    level = 0.5, alpha_at(0.5), 1.0
    torch.testing.assert_close(padded(one, *level), cut(one, *level), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["wan", "cosmos", "qwen"])
def test_wan_mixed_with_image_models_of_its_latents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan itself at one latent frame, Cosmos-Predict2 and Qwen-Image, whose networks are given s."""
    resize_without_torchvision(monkeypatch)
    wan = tiny_wan_transformer()
    network = {"wan": WanNetwork, "cosmos": CosmosNetwork, "qwen": QwenNetwork}[name]
    made = {"cosmos": tiny_cosmos_transformer, "qwen": tiny_qwen_transformer}
    transformer = wan if name == "wan" else made[name]()
    models: dict[str, Any] = {
        "video": VideoDenoiser(WanNetwork(wan), *texts("wan"), prediction_type="flow"),
        "image": ImageDenoiser(network(transformer), *texts(name, seed=1), prediction_type="flow"),
    }
    schedule, given = FlowSchedule(3.0, "unipc"), FlowSchedule(time_scale=1000 if name == "wan" else 1)
    settings: dict[str, Any] = {"image_guidance": 1, "video_guidance": 1, "guidance": 5.0, "image_schedule": given}
    plain = last(ddim_plan(schedule, 4, guidance=5.0), NOISE, **models)
    mixed = last(mixed_plan(schedule, 4, off_distribution=True, **settings), NOISE, **models)
    fused = last(fused_plan(schedule, 4, **settings), NOISE, **models)
    empty = last(mixed_plan(schedule, 4, interval=(0, 0), **settings), NOISE, **models)
    assert torch.equal(empty, plain)
    assert all(x.isfinite().all() and not close(x, plain) for x in (mixed, fused))
    times = torch.stack(models["image"].unet.times)
    assert times.max() == (1000 if name == "wan" else 1)
