"""Family wan with tiny weights: latents and frames equal to those of diffusers' WanPipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import T5Tokenizer, UMT5EncoderModel

from sampler import ddim_plan, sample, zigzag_plan
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation, Phase
from service.jobs.request import VideoRequest
from tests.factories import make_job
from tests.tiny_wan import (
    FRAMES,
    HEIGHT,
    LATENTS,
    NEGATIVE,
    PROMPT,
    SHIFT,
    STEPS,
    WIDTH,
    save_transformer,
    save_wan,
    wan_entry,
)
from tests.unit.worker.test_child_main import outcome, running
from worker.child.engine import Engine
from worker.child.latent_preview import open_previewer
from worker.messages import Done, Failed, Progress, Stop, Stopped
from worker.models import TransformerModels, load
from worker.networks.component_loader import load_component
from worker.networks.prompt_tokens import PromptTooLong
from worker.networks.video_transformers import text as text_module
from worker.verify import verify

BOUNDARY = 0.8


def euler(folder: Path) -> None:
    """The scheduler's file with which ddim makes the steps of diffusers' Euler solver."""
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")


def pipeline(folder: Path, **others: Any) -> Any:
    made: Any = WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        transformer=WanTransformer3DModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        **others,
    )
    made.set_progress_bar_config(disable=True)
    return made


def noise(seed: int = 3) -> Tensor:
    return torch.randn(LATENTS, generator=torch.Generator().manual_seed(seed))


def theirs(pipe: Any, guidance: float, *, output: str = "latent", seed: int = 3) -> Tensor:
    made = pipe(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise(seed),
        output_type=output,
    )
    return made.frames


def generation(entry: ModelEntry, **fields: Any) -> Generation:
    return entry.resolve(VideoRequest.model_validate({"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 3} | fields))


def assert_close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= bound * max(1.0, float(expected.abs().max()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    euler(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(wan_entry(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def models(engine: Engine) -> TransformerModels:
    assert isinstance(engine.models, TransformerModels)
    return engine.models


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_and_frames_are_those_of_diffusers(engine: Engine, folder: Path, guidance: float) -> None:
    pipe, made = pipeline(folder), engine.sample(generation(engine.models.entry, guidance_scale=guidance))
    assert_close(made.latents, theirs(pipe, guidance))
    frames = engine.decode(made).frames
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    expected = torch.from_numpy(theirs(pipe, guidance, output="np")[0]).mul(255)
    assert (frames - expected).abs().max() <= 0.51


def test_public_loader_runs_plans_of_the_sampler_directly(folder: Path) -> None:
    models: Any = load(wan_entry(folder), "cpu")
    plan = ddim_plan(models.video_schedule, STEPS, guidance=5.0)
    _, video = models.denoisers(PROMPT, NEGATIVE)
    *_, last = sample(noise(), plan, video=video)
    assert_close(last.latents, theirs(pipeline(folder), 5.0))


def test_batch_of_two_is_two_clips(models: TransformerModels) -> None:
    plan = ddim_plan(models.video_schedule, STEPS, guidance=5.0)
    prompts, none = [PROMPT, "a green square"], [NEGATIVE, ""]

    def run(texts: slice, latents: Tensor) -> Tensor:
        _, video = models.denoisers(models.encode(prompts[texts]), models.encode(none[texts]))
        return list(sample(latents, plan, video=video))[-1].latents

    latents = torch.cat([noise(1), noise(2)])
    together = run(slice(0, 2), latents)
    for clip in (0, 1):
        one = slice(clip, clip + 1)
        assert_close(together[one], run(one, latents[one]))


def test_halves_apart_and_low_memory_mode_are_the_same_clip(engine: Engine, folder: Path) -> None:
    entry = wan_entry(folder, "memory = { halves_apart = true, tiling = true }")
    whole, apart = engine.sample(generation(entry)), Engine(entry, torch.device("cpu"))
    calls: list[int] = []
    apart.models.transformers[0].register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))  # type: ignore[union-attr]
    assert_close(apart.sample(generation(entry)).latents, whole.latents)
    assert calls == [1] * 2 * STEPS
    low = engine._sample(generation(entry), None, lambda *_: None, lambda _: None, lambda _: None, None, {}, low_memory=True)
    assert_close(low.latents, whole.latents)
    assert (engine.decode(low).frames.int() - engine.decode(whole).frames).abs().max() <= 1


def test_clip_in_tiles_differs_at_their_seams_only(models: TransformerModels) -> None:
    latents = torch.randn(1, 16, 2, 40, 4, generator=torch.Generator().manual_seed(1))
    seen: list[bool] = []
    decode = models.vae._decode
    models.vae._decode = lambda *args, **kwargs: (seen.append(models.vae.use_tiling), decode(*args, **kwargs))[1]
    try:
        whole, tiled = models.decode(latents), models.decode(latents, frames_per_call=1)
    finally:
        del models.vae._decode
    assert seen == [False, True]
    assert whole.shape == tiled.shape == (5, 320, 32, 3)
    rows = (whole.int() - tiled.int()).abs().amax((0, 2, 3)) > 1
    assert not rows[:128].any(), "far from the seams nothing changes"


@pytest.mark.parametrize("memory", ["", "memory = { halves_apart = true }"])
def test_job_is_stopped_in_one_worker_and_completed_byte_identically_in_the_next(
    folder: Path, tmp_path: Path, memory: str
) -> None:
    engine = Engine(wan_entry(folder, memory), torch.device("cpu"))
    job = make_job(generation=generation(engine.models.entry, num_inference_steps=6, sampler={"solver": "dpmpp-2m"}))
    with running(engine, tmp_path / "undisturbed") as child:
        undisturbed, _ = child.run(job)
    assert isinstance(undisturbed, Done), undisturbed
    with running(engine, tmp_path / "data") as child:
        with child.job(job) as pipe, at_call(engine, 4, lambda: pipe.send(Stop(save_checkpoint=True))):
            assert outcome(pipe)[0] == Stopped()
        resumed, reports = child.run(job, may_resume=True)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    steps = [report.step for report in reports if isinstance(report, Progress) and report.phase is Phase.SAMPLING]
    assert 1 < min(steps) < 5


class at_call:  # noqa: N801  # reads as a verb where it is used
    """`do` during this call of the transformer."""

    def __init__(self, engine: Engine, number: int, do: Callable[[], None]) -> None:
        self._network, self._number, self._do, self._calls = engine.models.transformers[0], number, do, 0  # type: ignore[union-attr]

    def __enter__(self) -> None:
        self._handle = self._network.register_forward_pre_hook(self._hook)

    def _hook(self, *_: object) -> None:
        self._calls += 1
        if self._calls == self._number:
            self._do()

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# -- two experts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("experts") / "wan"
    shutil.copytree(folder, copied)
    torch.manual_seed(9)
    save_transformer(copied / "transformer_2")
    return copied


def test_two_experts_are_those_of_diffusers(experts: Path) -> None:
    engine = Engine(wan_entry(experts, f"boundary_ratio = {BOUNDARY}"), torch.device("cpu"))
    second = WanTransformer3DModel.from_pretrained(experts / "transformer_2")
    expected = theirs(pipeline(experts, transformer_2=second, boundary_ratio=BOUNDARY), 5.0)
    assert_close(engine.sample(generation(engine.models.entry)).latents, expected)
    assert (theirs(pipeline(experts), 5.0) - expected).abs().max() > 0.01, "the second expert matters"


def test_the_level_that_the_latents_are_at_chooses_the_expert_of_every_move(experts: Path) -> None:
    models: Any = load(wan_entry(experts, f"boundary_ratio = {BOUNDARY}"), "cpu")
    calls: list[tuple[int, float]] = []
    for number, network in enumerate(models.transformers):
        network.register_forward_pre_hook(lambda _, args, number=number: calls.append((number, float(args[1][0]))))
    plan = zigzag_plan(models.video_schedule, STEPS, guidance=5.0, goback_guidance=1.0)
    _, video = models.denoisers(PROMPT, NEGATIVE)
    list(sample(noise(), plan, video=video))
    assert [number for number, _ in calls] == [int(time < 1000 * BOUNDARY) for _, time in calls]
    assert {number for number, _ in calls} == {0, 1}
    goes_back = [(a, b) for a, b in zip(calls, calls[1:], strict=False) if b[1] > a[1]]
    assert any(a[0] != b[0] for a, b in goes_back), "a move goes back over the boundary"


@pytest.mark.parametrize("lines", [[], [f"boundary_ratio = {BOUNDARY}"]])
def test_experts_and_boundary_belong_together(folder: Path, experts: Path, lines: list[str]) -> None:
    entry = wan_entry(experts if not lines else folder, *lines)
    for check in (lambda: list(verify(entry)), lambda: load(entry, "cpu")):
        with pytest.raises(ConfigurationError, match="boundary_ratio is the noise level at which transformer_2 takes over"):
            check()
    wan_entry(folder)


# -- files and precision ---------------------------------------------------------------------------------------------


def test_verify_reads_every_component(folder: Path) -> None:
    lines = list(verify(wan_entry(folder)))
    assert [line.split(":")[0] for line in lines] == ["tokenizer", "text_encoder", "vae", "transformer", "scheduler"]
    assert "names, shapes and values of all weights" in lines[1]


def test_half_precision_keeps_what_diffusers_keeps_in_float32(folder: Path) -> None:
    ours = load_component(wan_entry(folder), "transformer", torch.bfloat16)
    expected = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    assert {k: v.dtype for k, v in ours.state_dict().items()} == {k: v.dtype for k, v in expected.state_dict().items()}
    assert ours.condition_embedder.time_embedder.linear_1.weight.dtype is torch.float32
    assert ours.rope.freqs_cos.dtype is torch.float32
    inputs = noise().bfloat16(), torch.tensor([996.5]), torch.ones(1, 512, 16).bfloat16()
    with torch.no_grad():
        assert torch.equal(ours(*inputs, return_dict=False)[0], expected(*inputs, return_dict=False)[0])


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("transformer", "config.json", {"in_channels": 36}, "does not fit its config.json"),
        ("transformer", "config.json", {"_class_name": "WanVACETransformer3DModel"}, "must be a WanTransformer3DModel"),
        ("text_encoder", "config.json", {"vocab_size": 8}, "does not fit its config.json"),
        ("scheduler", "scheduler_config.json", {"shift": -1}, "noise levels from .*shift"),
    ],
)
def test_broken_folder_is_refused_by_name(
    folder: Path, tmp_path: Path, name: str, file: str, change: dict[str, Any], message: str
) -> None:
    copied = tmp_path / "wan"
    shutil.copytree(folder, copied)
    path = copied / name / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    entry = wan_entry(copied)
    for check in (lambda: list(verify(entry)), lambda: load(entry, "cpu")):
        with pytest.raises(ConfigurationError, match=message):
            check()


def test_size_of_no_whole_tokens_is_refused_with_the_nearest(folder: Path) -> None:
    entry = wan_entry(folder).model_copy(update={"sizes": ("40x32",)})
    with pytest.raises(ConfigurationError, match=r"multiples of 16, .*write 32x32 or 48x32"):
        load(entry, "cpu")


# -- texts, previews, references -------------------------------------------------------------------------------------


def test_recent_texts_need_no_encoder_and_kept_ones_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: Any = load(wan_entry(folder), "cpu")
    calls: list[int] = []
    models.text.encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    first = models.encode([PROMPT, NEGATIVE]).video
    assert calls == [1, 1]
    assert torch.equal(models.encode([NEGATIVE, PROMPT]).video, first.flip(0))
    assert calls == [1, 1]
    monkeypatch.setattr(text_module, "KEPT_BYTES", 2 * first[0].nbytes)
    models.encode(["a", "red", "green"])
    assert len(models.text._kept) == 2
    models.encode(PROMPT)
    assert len(calls) == 6, "the oldest left first"
    expected, _ = pipeline(folder).encode_prompt(PROMPT, max_sequence_length=512, do_classifier_free_guidance=False)
    assert_close(models.encode(f"  {PROMPT} ").video, expected)
    assert not first[0, 10:].any(), "padding is zero"


def test_prompt_above_the_length_of_training_fails_with_the_numbers(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="513 tokens, the text encoder takes 512; shorten it"):
        engine.models.encode(" ".join(["red"] * 512))


def test_preview_has_a_picture_of_latent_frames(models: TransformerModels) -> None:
    previewer = open_previewer(models)
    assert previewer is not None
    plan = ddim_plan(models.video_schedule, STEPS, guidance=5.0)
    _, video = models.denoisers(PROMPT, NEGATIVE)
    first = next(iter(sample(noise(), plan, video=video)))
    shown = previewer.start(first, fps=8)
    assert shown.copy.frames.shape == (3, HEIGHT // 8, WIDTH // 8, 3)
    assert shown.frame_ms == 500, "a latent frame stands for four of the clip"


def test_clip_and_picture_are_encoded_as_a_whole(models: TransformerModels) -> None:
    frames = torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    pixels = frames.permute(3, 0, 1, 2)[None] / 127.5 - 1
    mean, std = (torch.tensor(models.vae.config[f"latents_{name}"]).view(1, 16, 1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = (models.vae.encode(pixels).latent_dist.mode() - mean) / std
    assert_close(models.encode_frames(frames), expected)
    assert models.encode_frames(frames[:1]).shape[2] == 1
    with pytest.raises(ValueError, match="F a multiple of 4 and one more"):
        models.encode_frames(frames[:4])


def test_lora_that_the_registry_has_no_more_fails_the_job(engine: Engine) -> None:
    lost = generation(engine.models.entry).model_copy(
        update={"loras": (LoraUse(name="ink", scale=1.0, networks=("video",)),)}
    )
    with pytest.raises(Exception, match="has no LoRA 'ink'") as raised:
        engine.sample(lost)
    failed = engine.failed_message(raised.value)
    assert isinstance(failed, Failed)
    assert failed.code == "invalid_input"
