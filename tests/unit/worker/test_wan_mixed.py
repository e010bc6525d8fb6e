"""Experimental: IV-mixed with one Wan as both models, the image model at one latent frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sampler import InvalidSetting
from service.catalog.registry import ModelRegistry
from service.errors import InvalidParameter
from service.jobs.request import VideoRequest
from tests.tiny_wan import generation, noise, save_wan, use_euler, wan_entry
from worker.child.engine import Engine
from worker.models import TransformerModels


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    use_euler(folder)
    return Engine(wan_entry(folder), torch.device("cpu"))


def latents(engine: Engine, **sampler: Any) -> torch.Tensor:
    return engine.sample(generation(engine.models.entry, sampler=sampler)).latents


def counted(engine: Engine, **sampler: Any) -> list[tuple[int, ...]]:
    """Shapes of the latents in all calls of the network."""
    assert isinstance(engine.models, TransformerModels)
    shapes: list[tuple[int, ...]] = []
    (network,) = engine.models.transformers
    handle = network.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    latents(engine, **sampler)
    handle.remove()
    return shapes


@pytest.mark.parametrize("name", ["iv-mixed", "fused"])
def test_empty_interval_is_the_plain_model_bit_for_bit(engine: Engine, name: str) -> None:
    assert torch.equal(latents(engine, name=name, interval=[0.5, 0.5]), latents(engine))
    assert not torch.equal(latents(engine, name=name), latents(engine))


@pytest.mark.parametrize(
    "sampler", [{"name": "iv-mixed"}, {"name": "fused"}, {"name": "fused", "image_frames": "first"}]
)
def test_image_model_is_the_same_network_at_one_latent_frame(engine: Engine, sampler: dict[str, Any]) -> None:
    resolved = generation(engine.models.entry, sampler=sampler)
    assert resolved.is_experimental
    shapes = counted(engine, **sampler)
    calls = {"image": sum(shape[2] == 1 for shape in shapes), "video": sum(shape[2] == 3 for shape in shapes)}
    assert calls == resolved.network_calls
    frames = 1 if sampler.get("image_frames") == "first" else 3
    assert {shape[0] for shape in shapes if shape[2] == 1} == {2 * frames}, "both halves of guidance, frames as rows"


def test_image_moves_commute_with_the_order_of_latent_frames(engine: Engine) -> None:
    image, _ = engine.models.denoisers("a red circle", "")
    x, order = noise(), torch.tensor([2, 0, 1])
    with torch.no_grad():
        found, moved = (image(clip, 500.0, 0.5, 4.0) for clip in (x, x[:, :, order]))
    assert (found[:, :, order] - moved).abs().max() <= 1e-5 * found.abs().max()


def test_first_latent_frame_alone_changes_nothing_in_the_step_for_the_others(engine: Engine) -> None:
    """Of one step: later ones see the changed frame through the video model."""
    short = {"num_inference_steps": 1, "seed": 3}

    def one(**sampler: Any) -> torch.Tensor:
        return engine.sample(generation(engine.models.entry, **short, sampler=sampler)).latents

    settings = {"name": "fused", "interval": [0, 1], "video_guidance": [1, 1]}
    with_image = one(**settings, image_frames="first")
    without = one(**settings, image_frames="first", image_guidance=[0, 0])
    assert torch.equal(with_image[:, :, 1:], without[:, :, 1:])
    assert not torch.equal(with_image[:, :, 0], without[:, :, 0])


def test_combinations_that_leak_are_refused_by_the_api_and_by_the_worker(engine: Engine) -> None:
    entry = engine.models.entry
    for combination in ("II-VV", "VV-II", "II-II", "IV-IV"):
        with pytest.raises(InvalidParameter, match="use IV-VI, or fused"):
            generation(entry, sampler={"name": "iv-mixed", "combination": combination})
    old = generation(entry, sampler={"name": "iv-mixed"})
    leaking = old.model_copy(update={"sampler": old.sampler.model_copy(update={"combination": "II-VV"})})
    with pytest.raises(InvalidSetting, match="leaks its own picture"):
        engine.plan(leaking)


def test_other_families_have_no_such_setting(engine: Engine) -> None:
    request = VideoRequest(prompt="a red circle", sampler={"name": "fused", "image_frames": "first"})
    with pytest.raises(InvalidParameter, match="has no image_frames; leave it out"):
        ModelRegistry.load().get("demo").resolve(request)
    assert "image_frames" in engine.models.entry.sampler_settings["fused"]
