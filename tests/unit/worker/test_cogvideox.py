"""Family cogvideox with tiny weights: latents and frames equal to those of diffusers' CogVideoXPipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.jobs.reference import ReferenceFile
from service.jobs.request import VideoRequest
from tests.factories import make_job
from tests.tiny_wan import FRAMES, HEIGHT, NEGATIVE, PROMPT, STEPS, WIDTH, assert_close, save_tokenizer, wan_entry
from tests.unit.worker.test_child_main import outcome, running
from tests.unit.worker.test_wan import at_call
from worker.child.engine import Engine
from worker.child.latent_preview import open_previewer
from worker.messages import Done, Stop, Stopped
from worker.verify import verify

TOKENS = 16
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": TOKENS,
}
VAE: dict[str, Any] = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 4,
    "scaling_factor": 0.7,
}
KINDS = {"2b": {}, "5b": {"use_rotary_positional_embeddings": True}}  # positions: sine waves, rotary


def save(folder: Path, **changes: Any) -> ModelEntry:
    torch.manual_seed(4)
    words = save_tokenizer(folder / "tokenizer")
    config = T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    AutoencoderKLCogVideoX(**VAE).save_pretrained(folder / "vae")
    network = CogVideoXTransformer3DModel(**TRANSFORMER | changes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder / "transformer")
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    )
    scheduler.save_pretrained(folder / "scheduler")
    return cog_entry(folder)


def cog_entry(folder: Path) -> ModelEntry:
    return wan_entry(folder, family="cogvideox")


@pytest.fixture(scope="module", params=["2b", pytest.param("5b", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cog")
    save(folder, **KINDS[request.param])
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(cog_entry(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    made: Any = CogVideoXPipeline(
        tokenizer=T5Tokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLCogVideoX.from_pretrained(folder / "vae"),
        transformer=CogVideoXTransformer3DModel.from_pretrained(folder / "transformer"),
        scheduler=CogVideoXDDIMScheduler.from_pretrained(folder / "scheduler"),
    )
    made.set_progress_bar_config(disable=True)
    return made


def generation(entry: ModelEntry, **fields: Any) -> Any:
    return entry.resolve(
        VideoRequest.model_validate({"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 3, **fields})
    )


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_and_frames_are_those_of_diffusers(engine: Engine, pipeline: Any, guidance: float) -> None:
    shape = engine.models.latents_shape()
    assert shape == (1, 4, 3, HEIGHT // 8, WIDTH // 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    made = engine.sample(generation(engine.models.entry, guidance_scale=guidance, sampler={"grid": "diffusers"}))

    def theirs(output: str) -> Any:
        return pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            width=WIDTH,
            height=HEIGHT,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            latents=noise.transpose(1, 2),
            max_sequence_length=TOKENS,
            output_type=output,
        ).frames

    assert_close(made.latents, theirs("latent").transpose(1, 2))
    expected = torch.from_numpy(theirs("np")[0]).mul(255)
    assert (engine.decode(made).frames - expected).abs().max() <= 0.51


def test_job_is_resumed_byte_identically_and_has_previews(engine: Engine, tmp_path: Path) -> None:
    assert open_previewer(engine.models) is not None
    job = make_job(generation=generation(engine.models.entry, num_inference_steps=6, sampler={"solver": "dpmpp-2m"}))
    with running(engine, tmp_path / "undisturbed") as child:
        undisturbed, _ = child.run(job)
    assert isinstance(undisturbed, Done), undisturbed
    with running(engine, tmp_path / "data") as child:
        with child.job(job) as pipe, at_call(engine, 4, lambda: pipe.send(Stop(save_checkpoint=True))):
            assert outcome(pipe)[0] == Stopped()
        resumed, _ = child.run(job, may_resume=True)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256


def test_clip_may_start_from_a_picture(engine: Engine, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30)).save(tmp_path / "reference", "PNG")
    picture = ReferenceFile(sha256="0" * 64, media_type="image/png", width=WIDTH, height=HEIGHT)
    begun = generation(engine.models.entry, input_reference=picture, strength=0.5)
    assert engine.sample(begun, reference=tmp_path / "reference").latents.isfinite().all()


def test_versions_with_other_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"in_channels": 8}, "takes 8 latent channels and returns 4"),
        ({"patch_size_t": 2, "sample_frames": 9}, "CogVideoX 1.5 pads its clips"),
    ):
        entry = save(tmp_path / str(len(message)), **changes)
        with pytest.raises(ConfigurationError, match=message):
            list(verify(entry))
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["patch_size_t"] is None
