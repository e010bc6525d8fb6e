"""Each optimisation alone, and all of them, on tiny networks of the three families: the same latents, less work."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sampler import ImageDenoiser, VideoDenoiser, mixed_plan, sample
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from tests.tiny_models import save_model, write_entry
from worker.networks.loading import load
from worker.networks.models import Models
from worker.networks.optimise import OptimisedNetwork, TextKVCache, vae_decode
from worker.networks.optimise.weight_memory import resident_bytes, shared_bytes

FAMILIES = ("animatediff", "modelscope", "videocrafter")
SWITCHES = ("cache_text_kv", "cache_time_embeds")
NONE = Optimise(**dict.fromkeys(SWITCHES, False))
PROMPT, NEGATIVE = "a red circle moving left on a teal background", "low quality"
FRAMES = 3


@pytest.fixture(scope="module", params=FAMILIES)
def entry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return save_model(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def one_base(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    """AnimateDiff whose image model is the video model's base, and reads the same text encoder."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model("animatediff", folder)
    for name in ("image_unet", "image_tokenizer", "image_text_encoder"):
        shutil.rmtree(folder / name)
    return write_entry(folder, "animatediff")


def models_of(entry: ModelEntry, optimise: Optimise) -> Models:
    return load(entry.model_copy(update={"optimise": optimise}), "cpu")


@functools.cache
def _loaded(folder: Path, family: str, optimise: str) -> Models:
    return models_of(write_entry(folder, family), Optimise.model_validate_json(optimise))


def loaded(entry: ModelEntry, optimise: Optimise) -> Models:
    """Like `models_of`, loaded once: for tests that change neither networks nor hooks, and may find warm caches."""
    assert entry.path is not None
    return _loaded(entry.path, entry.family, optimise.model_dump_json())


def clip(models: Models, *, guidance: float = 7.5, prompt: str = PROMPT, steps: int = 2) -> Tensor:
    image, video = models.denoisers(prompt, NEGATIVE)
    return latents(models, image, video, guidance, steps)


def plainly(models: Models, *, guidance: float = 7.5, prompt: str = PROMPT, steps: int = 2) -> Tensor:
    """Networks called as diffusers' pipelines call them."""
    cond, uncond = models.encode(prompt), models.encode(NEGATIVE)
    args = {"fps": 8} if models.entry.family == "videocrafter" else {}
    image = ImageDenoiser(models.image_unet, cond.image, uncond.image)
    return latents(
        models, image, VideoDenoiser(models.video_unet, cond.video, uncond.video, network_args=args), guidance, steps
    )


def latents(models: Models, image: Any, video: Any, guidance: float, steps: int) -> Tensor:
    plan = mixed_plan(models.video_schedule, steps, guidance=guidance, image_schedule=models.image_schedule)
    x = torch.randn(1, 4, FRAMES, 8, 8, generator=Generator().manual_seed(1))
    *_, last = sample(x, plan, image=image, video=video)
    return last.latents


_PLAIN: dict[tuple[object, ...], Tensor] = {}


def plain_latents(entry: ModelEntry, **arguments: Any) -> Tensor:
    """Latents of the networks without any optimisation; computed once per model and arguments."""
    key = (entry.path, *sorted(arguments.items()))
    if key not in _PLAIN:
        _PLAIN[key] = plainly(loaded(entry, NONE), **arguments)
    return _PLAIN[key]


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


CASES = [*((name, 7.5) for name in (*SWITCHES, "all", "none")), ("all", 1.0), ("all", 0.0)]


@pytest.mark.sample(7)
@pytest.mark.parametrize(("name", "guidance"), CASES)
def test_latents_are_those_of_the_plain_path(entry: ModelEntry, name: str, guidance: float) -> None:
    """With guidance 1 and 0 only one half of the ordinary step is computed."""
    optimise = {"all": Optimise(), "none": NONE}.get(name) or NONE.model_copy(update={name: True})
    has_caches_to_fill = name != "none" and guidance == 7.5
    models = (models_of if has_caches_to_fill else loaded)(entry, optimise)
    expected = plain_latents(entry, guidance=guidance)
    found = clip(models, guidance=guidance)
    assert close(found, expected)
    if name == "none":
        assert torch.equal(found, expected)
    assert close(clip(models, guidance=guidance), found)  # tables and caches are warm now
    assert torch.equal(plainly(models, guidance=guidance), expected)  # direct calls of the UNets are unchanged


@pytest.mark.sample(1)
def test_low_memory_changes_nothing_but_the_rounding(entry: ModelEntry) -> None:
    """One CFG branch and one frame at a time; a text still has its keys once."""
    models = loaded(entry, Optimise())
    image, video = models.denoisers(PROMPT, NEGATIVE)
    image.sequential_cfg = video.sequential_cfg = True
    image.frames_at_once = 1
    assert close(latents(models, image, video, 7.5, 2), plain_latents(entry))
    known = len(models.text_kv_cache)
    latents(models, image, video, 7.5, 2)
    assert len(models.text_kv_cache) == known


@torch.no_grad()
def test_fractional_timesteps_keep_their_fraction(entry: ModelEntry) -> None:
    """In the tables of timesteps and of their embeddings; whole ones stay int64, as diffusers' schedulers make them."""
    models = loaded(entry, Optimise())
    image, _ = models.denoisers(PROMPT, NEGATIVE)
    x = torch.randn(1, 4, 1, 8, 8, generator=Generator().manual_seed(1))
    found = [image(x, t, 0.5, 0.0) for t in (500, 500.5, 501)]
    assert not close(found[0], found[1])
    assert not close(found[1], found[2])
    plain = models.image_unet(x[:, :, 0], torch.tensor(500.5), models.encode(NEGATIVE).image).sample
    assert close(found[1][:, :, 0], plain)


class Rows:
    """The rows that modules are given, by name."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: dict[str, list[int]] = {}
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda _module, args, name=name: self._note(name, args))

    def _note(self, name: str, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            self.seen.setdefault(name, []).append(args[0].shape[0])


@pytest.mark.sample(1)
def test_a_text_is_projected_once_per_job_and_never_per_frame(entry: ModelEntry) -> None:
    models = models_of(entry, Optimise())
    rows = {name: Rows(unet) for name, unet in (("image", models.image_unet), ("video", models.video_unet))}
    clip(models)
    for seen in rows.values():
        projected = {name: calls for name, calls in seen.seen.items() if name.endswith("attn2.to_k") and 2 in calls}
        assert projected
        assert all(calls == [2] for calls in projected.values())
    size = models.text_kv_cache.size_bytes
    assert size > 0
    clip(models, prompt="a blue square")
    assert models.text_kv_cache.size_bytes == size  # the first job's are gone


@pytest.mark.sample(1)
def test_another_prompt_is_not_answered_from_the_first_ones_keys(entry: ModelEntry) -> None:
    models = loaded(entry, Optimise())
    first = clip(models)
    other = clip(models, prompt="a blue square moving up on a black background")
    assert not close(other, first)
    assert close(other, plain_latents(entry, prompt="a blue square moving up on a black background"))


@pytest.mark.sample(1)
def test_a_timestep_is_embedded_once(entry: ModelEntry) -> None:
    models = models_of(entry, Optimise())
    rows = Rows(models.video_unet)
    clip(models, steps=3)
    embedded = rows.seen["time_embedding.linear_1"]
    timesteps = set(models.video_schedule.timesteps(3))
    assert embedded == [1] * len(timesteps)
    clip(models, steps=3)
    assert len(embedded) == len(timesteps)  # the second job found them all


def test_videocrafters_embedding_cache_includes_the_frame_rate(tmp_path: Path) -> None:
    models = models_of(save_model("videocrafter", tmp_path / "model"), Optimise())
    plain = models_of(models.entry, NONE)
    for fps in (8, 24, 8):
        answers = []
        for each in (models, plain):
            video = each.denoisers(PROMPT, fps=fps)[1]
            with torch.no_grad():
                answers.append(video(torch.ones(1, 4, FRAMES, 8, 8), 500, 0.5, 3.0))
        assert close(*answers)


# -- one copy --------------------------------------------------------------------------------------------------------


@pytest.mark.sample(1)
def test_one_base_is_in_memory_once_and_said_so(
    one_base: ModelEntry, entry: ModelEntry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "ivmix.child"):
        models = models_of(one_base, Optimise())
    (line,) = (r.getMessage() for r in caplog.records if "shared by both UNets" in r.getMessage())
    assert f"{models.weights_bytes / 1e6:.0f} MB" in line
    assert f"{resident_bytes(models.image_unet) / 1e6:.0f} MB shared" in line
    image, video = models.image_unet, models.video_unet
    assert shared_bytes(image, video) == resident_bytes(image)
    places = {parameter.untyped_storage().data_ptr() for parameter in video.parameters()}
    assert all(parameter.untyped_storage().data_ptr() in places for parameter in image.parameters())
    assert models.weights_bytes == resident_bytes(video, models.vae, models.video_text_encoder.encoder)
    apart = loaded(entry, Optimise())
    assert shared_bytes(apart.image_unet, apart.video_unet) == 0
    assert apart.weights_bytes == sum(
        resident_bytes(module)
        for module in (
            apart.image_unet,
            apart.video_unet,
            apart.vae,
            apart.image_text_encoder.encoder,
            apart.video_text_encoder.encoder,
        )
    )


def test_one_cache_serves_both_networks_where_they_share_weights_and_text(one_base: ModelEntry) -> None:
    models = models_of(one_base, Optimise())
    found = clip(models)
    crossings = sum(name.endswith("attn2.to_k") for name, _ in models.image_unet.named_modules())
    assert len(models.text_kv_cache) == crossings
    assert close(found, plain_latents(one_base))


def test_a_network_whose_cross_attention_does_more_is_left_as_it_is(entry: ModelEntry) -> None:
    models = models_of(entry, NONE)
    for module in models.image_unet.modules():
        if getattr(module, "is_cross_attention", False):
            module.norm_cross = nn.Identity()
    processors = Counter(map(type, models.image_unet.attn_processors.values()))
    OptimisedNetwork(models.image_unet, Optimise(), TextKVCache())
    assert Counter(map(type, models.image_unet.attn_processors.values())) == processors


# -- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames_per_call", [1, 2, 3, None])
@torch.no_grad()
def test_pixels_do_not_depend_on_how_many_frames_are_decoded_together(
    entry: ModelEntry, frames_per_call: int | None
) -> None:
    vae = loaded(entry, Optimise()).vae
    x = torch.randn(1, 4, 3, 8, 8, generator=Generator().manual_seed(2))
    frames = vae.decode(x[0].transpose(0, 1) / vae.config.scaling_factor).sample
    expected = ((frames.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
    found = vae_decode.decode(vae, x, frames_per_call=frames_per_call)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 32, 32, 3))
    assert (found.float() - expected).abs().max() <= 1  # a rounding of float32 next to the edge between two values
    assert (found.float() != expected).float().mean() < 0.01


@pytest.mark.sample(1)
def test_half_precision_decodes_to_the_same_picture(entry: ModelEntry) -> None:
    """At 40 dB two pictures look the same."""
    models = models_of(entry, Optimise())
    x = torch.randn(1, 4, 3, 8, 8, generator=Generator().manual_seed(2))
    expected = vae_decode.decode(models.vae, x).float()
    found = vae_decode.decode(models.vae.to(torch.bfloat16), x).float()
    assert -10 * torch.log10(((found - expected) / 255).square().mean()) >= 40


def test_decoder_weights_are_channels_last(entry: ModelEntry) -> None:
    weights = [p for p in loaded(entry, Optimise()).vae.parameters() if p.ndim == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
