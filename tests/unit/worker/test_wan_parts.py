"""Family wan: its files, precision, texts, previews and references, with tiny weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from sampler import FlowSchedule, ddim_plan, sample
from service.errors import ConfigurationError
from service.jobs.lora_choice import LoraUse
from service.jobs.timestep_spacing import FlowSpacing
from tests.tiny_wan import (
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    STEPS,
    WIDTH,
    assert_close,
    generation,
    noise,
    pipeline,
    save_wan,
    use_euler,
    wan_entry,
)
from worker.child.engine import Engine
from worker.child.latent_preview import open_previewer
from worker.messages import Failed
from worker.models import TransformerModels, load
from worker.networks.component_loader import load_component
from worker.networks.prompt_tokens import PromptTooLong
from worker.networks.schedules import load_schedule
from worker.networks.video_transformers import text as text_module
from worker.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    use_euler(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(wan_entry(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def models(engine: Engine) -> TransformerModels:
    assert isinstance(engine.models, TransformerModels)
    return engine.models


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
    with pytest.raises(ConfigurationError, match=message):
        list(verify(wan_entry(copied)))


def test_size_of_no_whole_tokens_is_refused_with_the_nearest(folder: Path) -> None:
    entry = wan_entry(folder).model_copy(update={"sizes": ("40x32",)})
    with pytest.raises(ConfigurationError, match=r"multiples of 16, .*write 32x32 or 48x48"):
        load(entry, "cpu")


# -- texts, previews, references -------------------------------------------------------------------------------------


def test_recent_texts_need_no_encoder_and_kept_ones_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with torch.no_grad():
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


@pytest.mark.parametrize(
    ("kind", "key"), [("FlowMatchEulerDiscreteScheduler", "shift"), ("UniPCMultistepScheduler", "flow_shift")]
)
def test_shift_is_the_one_that_the_schedulers_class_reads(kind: str, key: str, tmp_path: Path) -> None:
    """A config that was made from one of the other class has both keys. API and worker must agree."""
    config = {"_class_name": kind, "shift": 1.0, "flow_shift": 1.0, "use_flow_sigmas": True, key: 3.0}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    for lines, shift in (((), 3.0), (("flow_shift = 5",), 5.0)):
        entry = wan_entry(tmp_path, *lines)
        spacing, schedule = entry.spacing_of("video"), load_schedule(entry)
        assert isinstance(spacing, FlowSpacing)
        assert isinstance(schedule, FlowSchedule)
        assert (spacing.shift, schedule.shift) == (shift, shift)
