"""Family animatediff-sdxl with a tiny pair: latents equal to those of diffusers' own SDXL pipelines."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffSDXLPipeline,
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.jobs.model import Generation, Phase
from service.jobs.request import VideoRequest
from tests import lora_files, original_layout
from tests.factories import make_job
from tests.lora_files import Numbers
from tests.tiny_models import write_entry
from tests.tiny_sdxl import FAMILY, LAYERS, VAE, WIDTHS, save_sdxl
from tests.unit.worker.test_child_main import at_call, outcome, running
from worker.child.engine import Engine
from worker.messages import Done, Progress, Stop, Stopped
from worker.networks.assembly import assemble
from worker.networks.loading import load
from worker.verify import verify

PROMPT, NEGATIVE = "a red circle moving left on a teal background", "low quality"
WIDTH, HEIGHT, FRAMES, STEPS = 48, 32, 3, 2  # not square: the order of the sizes matters
OWN = ("[sources.own]", 'folder = "."')


@dataclass
class Pair:
    """The tiny pair, loaded by the worker and by diffusers."""

    engine: Engine
    pipelines: dict[str, Any]
    loras: tuple[str, ...] = ()

    @property
    def entry(self) -> ModelEntry:
        return self.engine.models.entry

    def generation(self, network: str, guidance: float, negative: str) -> Generation:
        request = {
            "prompt": PROMPT,
            "negative_prompt": negative,
            "seed": 3,
            "num_frames": FRAMES,
            "num_inference_steps": STEPS,
            "guidance_scale": guidance,
            "sampler": {"name": "ddim", "network": network},
            "loras": self.loras,
        }
        return self.entry.resolve(VideoRequest.model_validate(request))

    def ours(self, network: str, guidance: float, negative: str) -> Tensor:
        return self.engine.sample(self.generation(network, guidance, negative)).latents

    def theirs(self, network: str, guidance: float, negative: str | None) -> Tensor:
        made = self.pipelines[network]
        noise = torch.randn(1, 4, FRAMES, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(3))
        settings: dict[str, Any] = {
            "prompt": PROMPT,
            "negative_prompt": negative,
            "height": HEIGHT,
            "width": WIDTH,
            "guidance_scale": guidance,
            "num_inference_steps": STEPS,
            "output_type": "latent",
        }
        if network == "video":
            return made(latents=noise, num_frames=FRAMES, **settings).frames
        return torch.stack([made(latents=noise[:, :, i], **settings).images for i in range(FRAMES)], dim=2)


def small(entry: ModelEntry, **more: Any) -> Generation:
    """A short clip of the paper's method."""
    request = VideoRequest(prompt=PROMPT, seed=3, num_frames=FRAMES, num_inference_steps=3)
    return entry.resolve(request.model_copy(update=more))


def pipeline(folder: Path, network: str) -> Any:
    """diffusers' pipeline with the video model, or with the image model and its own text encoders."""
    prefix = "image_" if network == "image" else ""
    scheduler = EulerDiscreteScheduler.from_pretrained(folder / f"{prefix}scheduler")
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / f"{prefix}text_encoder"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(folder / f"{prefix}text_encoder_2"),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / f"{prefix}tokenizer"),
        "tokenizer_2": CLIPTokenizer.from_pretrained(folder / f"{prefix}tokenizer_2"),
        "unet": UNet2DConditionModel.from_pretrained(folder / f"{prefix}unet"),
        "scheduler": DDIMScheduler.from_config(scheduler.config, clip_sample=False),
    }
    made: Any
    if network == "image":
        made = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        made = AnimateDiffSDXLPipeline(**parts, motion_adapter=MotionAdapter.from_pretrained(folder / "motion_adapter"))
        # diffusers 0.42 leaves these weights random: https://github.com/huggingface/diffusers/pull/6721
        made.unet.add_embedding.load_state_dict(parts["unet"].add_embedding.state_dict())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    save_sdxl(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    entry = write_entry(folder, FAMILY).model_copy(update={"sizes": (f"{WIDTH}x{HEIGHT}", "32x32")})
    return Pair(Engine(entry, torch.device("cpu")), {name: pipeline(folder, name) for name in ("video", "image")})


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.sample(2)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("network", ["video", "image"])
def test_latents_are_those_of_diffusers(pair: Pair, network: str, guidance: float) -> None:
    assert error(pair.ours(network, guidance, NEGATIVE), pair.theirs(network, guidance, NEGATIVE)) <= 1e-5


@pytest.mark.parametrize("network", ["video", "image"])
def test_no_negative_prompt_is_zeros_unless_the_entry_says_otherwise(pair: Pair, network: str) -> None:
    """As diffusers without negative_prompt; with force_zeros_for_empty_prompt=false as with an empty one."""
    zeros = pair.ours(network, 7.5, "")
    assert error(zeros, pair.theirs(network, 7.5, None)) <= 1e-5
    encoding = copy.copy(pair.engine)
    entry = pair.entry.model_copy(update={"force_zeros_for_empty_prompt": False})
    encoding.models = copy.copy(pair.engine.models)
    vars(encoding.models).update(entry=entry)
    other = Pair(encoding, pair.pipelines)
    assert error(other.ours(network, 7.5, ""), pair.theirs(network, 7.5, "")) <= 1e-5
    assert error(other.ours(network, 7.5, ""), zeros) > 1e-2


def test_autoencoder_that_overflows_in_half_precision_stays_in_float32(folder: Path, tmp_path: Path) -> None:
    """SDXL's own says so with force_upcast; the fp16-fix one, a component by itself, says that it does not."""
    entry = write_entry(folder, FAMILY)
    parts = assemble(entry, torch.float16)
    assert (parts.vae.dtype, parts.video_unet.dtype) == (torch.float32, torch.float16)
    assert {encoder.dtype for encoder in parts.image_text_encoder.networks} == {torch.float16}
    AutoencoderKL(**{**VAE, "force_upcast": False}).save_pretrained(tmp_path / "fixed")
    lines = 'components = { vae = "own" }', "[sources.own]", f'folder = "{tmp_path / "fixed"}"'
    assert assemble(write_entry(folder, FAMILY, *lines), torch.float16).vae.dtype == torch.float16


def test_one_denoiser_call_for_several_clips_and_in_parts_is_that_of_each_clip(pair: Pair) -> None:
    models = pair.engine.models
    texts, none = models.encode([PROMPT, "a green square"]), models.encode(["", ""], empty_is_none=True)
    latents = torch.randn(2, 4, FRAMES, 8, 12, generator=torch.Generator().manual_seed(5))
    together = models.denoisers(texts, none)
    with torch.no_grad():
        expected = [denoiser(latents, 500, 0.4, 4.0) for denoiser in together]
        for clip in (0, 1):
            one = slice(clip, clip + 1)
            alone = models.denoisers(texts[one], none[one])
            in_parts = models.denoisers(texts[one], none[one])
            in_parts[0].sequential_cfg = in_parts[1].sequential_cfg = True  # as after running out of memory
            in_parts[0].frames_at_once = 1
            for pairs in (alone, in_parts):
                for denoiser, whole in zip(pairs, expected, strict=True):
                    assert error(denoiser(latents[one], 500, 0.4, 4.0), whole[one]) <= 1e-5


def test_job_is_stopped_in_one_worker_and_completed_byte_identically_in_the_next(pair: Pair, tmp_path: Path) -> None:
    job = make_job(generation=small(pair.entry))
    with running(pair.engine, tmp_path / "undisturbed") as child:
        undisturbed, _ = child.run(job)
    assert isinstance(undisturbed, Done)
    with running(pair.engine, tmp_path / "data") as child:
        with child.job(job) as pipe, at_call(pair.engine, 4, lambda: pipe.send(Stop(save_checkpoint=True))):
            assert outcome(pipe)[0] == Stopped()
        resumed, reports = child.run(job, may_resume=True)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    steps = [report.step for report in reports if isinstance(report, Progress) and report.phase is Phase.SAMPLING]
    assert steps in ([1, 2, 3], [2, 3])


# -- LoRA and textual inversion --------------------------------------------------------------------------------------

BLOCK = "down_blocks.2.attentions.0"
UNET = [
    *(f"{BLOCK}.transformer_blocks.1.{name}" for name in ("attn1.to_q", "attn2.to_k", "ff.net.0.proj")),
    *(f"{BLOCK}.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v", "up_blocks.1.resnets.2.conv1"),
]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj", "encoder.layers.1.mlp.fc1"]


def kohya(theirs: Any) -> dict[str, Tensor]:
    """A LoRA with the names of kohya's SDXL trainer: those of the original UNet."""
    unet = {
        next(iter(original_layout.unet({f"{name}.weight": weight}, LAYERS))).removesuffix(".weight"): weight
        for name, weight in lora_files.layer_weights(theirs.unet, UNET).items()
    }
    encoders = (theirs.text_encoder, theirs.text_encoder_2.text_model)
    texts = [
        {f"text_model.{name}": w for name, w in lora_files.layer_weights(encoder, TEXT).items()} for encoder in encoders
    ]
    return {
        **lora_files.kohya("lora_unet", unet, Numbers(1)),
        **lora_files.kohya("lora_te1", texts[0], Numbers(2)),
        **lora_files.kohya("lora_te2", texts[1], Numbers(3)),
    }


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("video", "loras"),
        ("image", "loras"),
        pytest.param("video", "selectable_loras", marks=pytest.mark.slow),
        pytest.param("image", "selectable_loras", marks=pytest.mark.slow),
    ],
)
def test_kohyas_lora_on_unet_and_both_text_encoders_is_that_of_diffusers(folder: Path, network: str, kind: str) -> None:
    theirs = pipeline(folder, network)
    save_file(kohya(theirs), folder / "style.safetensors")
    lines = f"[[models.tiny.{kind}]]", 'file = "own/style.safetensors"', f'on = ["{network}"]'
    chosen = () if kind == "loras" else ("style",)  # by the request
    lines += ('name = "style"',) if chosen else ()
    entry = write_entry(folder, FAMILY, *lines, *OWN).model_copy(update={"sizes": (f"{WIDTH}x{HEIGHT}",)})
    plain = theirs.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight.clone()
    theirs.load_lora_weights(folder, weight_name="style.safetensors")
    theirs.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    theirs.unload_lora_weights()
    pair = Pair(Engine(entry, torch.device("cpu")), {network: theirs}, chosen)
    assert error(pair.ours(network, 7.5, NEGATIVE), pair.theirs(network, 7.5, NEGATIVE)) <= 1e-5
    assert not torch.equal(theirs.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight, plain)
    assert {line.split(" (")[0] for line in verify(entry)} >= {f"{kind}.0: OK"}


def test_textual_inversion_of_sdxl_is_that_of_diffusers(folder: Path) -> None:
    vectors = {"clip_l": Numbers(1)(2, WIDTHS["text_encoder"]), "clip_g": Numbers(2)(2, WIDTHS["text_encoder_2"])}
    save_file(vectors, folder / "word.safetensors")
    lines = "[[models.tiny.textual_inversions]]", 'file = "own/word.safetensors"', 'token = "<x>"'
    entry, theirs = write_entry(folder, FAMILY, *lines, *OWN), pipeline(folder, "image")
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(theirs, f"text_encoder{end}"), getattr(theirs, f"tokenizer{end}")
        theirs.load_textual_inversion({"<x>": vectors[key]}, text_encoder=encoder, tokenizer=tokenizer)
    found = load(entry, "cpu").encode("a <x> circle")
    with torch.no_grad():
        text, _, pooled, _ = theirs.encode_prompt("a <x> circle", do_classifier_free_guidance=False)
    assert found.image_pooled is not None
    assert error(found.image, text) <= 1e-5
    assert error(found.image_pooled, pooled) <= 1e-5
    save_file({"emb_params": vectors["clip_l"]}, folder / "word.safetensors")
    with pytest.raises(ConfigurationError, match=r"is not for SDXL \(emb_params\); use one with clip_l and clip_g"):
        load(entry, "cpu")
