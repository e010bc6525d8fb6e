"""Wan's image-to-video models with tiny weights: latents equal to those of diffusers' WanImageToVideoPipeline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.reference import ReferenceFile
from service.jobs.request import VideoRequest
from tests.tiny_wan import (
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    STEPS,
    TRANSFORMER,
    WIDTH,
    assert_close,
    noise,
    pipeline,
    save_wan,
    use_euler,
    wan_entry,
)
from worker.child.engine import Engine
from worker.verify import verify

CLIP_WIDTH, CLIP_SIDE = 8, 30
CHANNELS, TOKENS = 'image_conditioning = "channels"', 'image_conditioning = "tokens"'
PICTURE = ReferenceFile(sha256="0" * 64, media_type="image/png", width=WIDTH, height=HEIGHT)
KINDS = {"2.1": CHANNELS, "2.2 A14B": CHANNELS, "2.2 5B": TOKENS}


def save(folder: Path, kind: str) -> None:
    inner = TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
    changes: dict[str, Any] = {"in_channels": 36} if KINDS[kind] == CHANNELS else {}
    if kind == "2.1":
        changes |= {"image_dim": CLIP_WIDTH, "added_kv_proj_dim": inner}
        config = CLIPVisionConfig(
            hidden_size=CLIP_WIDTH,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=CLIP_SIDE,
            patch_size=6,
        )
        CLIPVisionModel(config).save_pretrained(folder / "image_encoder")
        sides = {"height": CLIP_SIDE, "width": CLIP_SIDE}
        CLIPImageProcessorPil(size=sides, crop_size=sides).save_pretrained(folder / "image_processor")
    save_wan(folder, **changes)
    use_euler(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp("wan") / kind for kind in KINDS}
    for kind, folder in made.items():
        folder.mkdir()
        save(folder, kind)
    return made


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "reference"
    shown = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(shown).save(file, "PNG")
    return file


def request(entry: ModelEntry, guidance: float, **fields: Any) -> Any:
    body = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 3, "guidance_scale": guidance}
    return entry.resolve(VideoRequest.model_validate({**body, "input_reference": PICTURE, **fields}))


def theirs(folder: Path, picture: Path, guidance: float) -> Any:
    vision: dict[str, Any] = {}
    if folder.name == "2.1":
        vision["image_encoder"] = CLIPVisionModel.from_pretrained(folder / "image_encoder")
        vision["image_processor"] = CLIPImageProcessorPil.from_pretrained(folder / "image_processor")
    of_text = pipeline(folder)  # the other pipeline cleans texts with ftfy, which is not installed
    with torch.no_grad():
        cond, uncond = of_text.encode_prompt(PROMPT, NEGATIVE, max_sequence_length=512)
    names = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")
    components = {name: of_text.components[name] for name in names}
    pipe: Any = WanImageToVideoPipeline(expand_timesteps=folder.name == "2.2 5B", **components, **vision)
    pipe.set_progress_bar_config(disable=True)
    settings = {"width": WIDTH, "height": HEIGHT, "num_frames": FRAMES, "num_inference_steps": STEPS}
    return pipe(
        image=Image.open(picture, formats=["PNG"]),
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        guidance_scale=guidance,
        latents=noise(),
        output_type="latent",
        **settings,
    ).frames


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_those_of_diffusers(folders: dict[str, Path], picture: Path, kind: str, guidance: float) -> None:
    engine = Engine(wan_entry(folders[kind], KINDS[kind]), torch.device("cpu"))
    made = engine.sample(request(engine.models.entry, guidance), reference=picture)
    assert_close(made.latents, theirs(folders[kind], picture, guidance))


@pytest.mark.parametrize("kind", ["2.1", "2.2 5B"])
def test_first_frame_is_kept_with_every_solver_and_the_worker_warms_up(
    folders: dict[str, Path], picture: Path, kind: str
) -> None:
    engine = Engine(wan_entry(folders[kind], KINDS[kind]), torch.device("cpu"))
    engine.warm_up(engine.models.entry.default_generation)
    made = engine.sample(request(engine.models.entry, 5.0, sampler={"solver": "dpmpp-2m"}), reference=picture)
    assert made.latents.isfinite().all()
    if kind == "2.2 5B":
        shown = torch.from_numpy(np.array(Image.open(picture, formats=["PNG"])))
        assert_close(made.latents[:, :, :1], engine.models.encode_frames(shown[None]))


@pytest.mark.parametrize("kind", ["2.2 A14B", "2.2 5B"])
def test_autoencoder_without_room_encodes_the_first_frame_in_tiles(
    folders: dict[str, Path], picture: Path, kind: str
) -> None:
    engine = Engine(wan_entry(folders[kind], KINDS[kind]), torch.device("cpu"))
    wanted, vae, encoded = request(engine.models.entry, 5.0), engine.models.vae, list[bool]()
    whole = engine.sample(wanted, reference=picture)

    def check(*_: object) -> None:
        encoded.append(vae.use_tiling)
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("tried to allocate a clip")

    vae.encoder.register_forward_pre_hook(check)
    assert_close(engine.sample(wanted, reference=picture).latents, whole.latents)
    assert encoded[:2] == [False, True]


def test_model_of_tokens_also_makes_clips_of_a_prompt_alone(folders: dict[str, Path]) -> None:
    with_times = Engine(wan_entry(folders["2.2 5B"], TOKENS), torch.device("cpu"))
    without = Engine(wan_entry(folders["2.2 5B"]), torch.device("cpu"))
    made = [engine.sample(request(engine.models.entry, 5.0, input_reference=None)) for engine in (with_times, without)]
    assert torch.equal(made[0].latents, made[1].latents)


@pytest.mark.parametrize(
    ("lines", "fields", "param", "message"),
    [
        (CHANNELS, {"input_reference": None}, "input_reference", "makes videos of a picture; send one"),
        (CHANNELS, {"reference_use": "start"}, "reference_use", "always keeps the first frame; use first_frame"),
        (CHANNELS, {"conditioning_scale": 0.5}, "conditioning_scale", "keeps the first frame as it is; leave it out"),
        (TOKENS, {"strength": 0.5}, "strength", "belongs to reference_use=start"),
        (
            "",
            {"reference_use": "first_frame"},
            "reference_use",
            "text-to-video .* use reference_use=start, or an image-to",
        ),
    ],
)
def test_references_that_the_model_cannot_use_are_refused(
    folders: dict[str, Path], lines: str, fields: dict[str, Any], param: str, message: str
) -> None:
    entry = wan_entry(folders["2.1"], lines)
    with pytest.raises(InvalidParameter, match=message) as raised:
        request(entry, 5.0, **fields)
    assert raised.value.param == param
    assert entry.resolve(VideoRequest(prompt=PROMPT, input_reference=PICTURE)).reference is not None


@pytest.mark.parametrize(
    ("kind", "lines", "without", "message"),
    [
        ("2.2 A14B", "", None, 'add image_conditioning = "channels" to the entry'),
        ("2.2 5B", CHANNELS, None, "takes 16 latent channels"),
        ("2.1", CHANNELS, "image_encoder", "lacks image_encoder, which its transformer reads"),
        ("2.1", CHANNELS, "image_processor/preprocessor_config.json", "preprocessor_config.json is missing"),
    ],
)
def test_folders_without_what_the_conditioning_needs_are_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, lines: str, without: str | None, message: str
) -> None:
    copied = tmp_path / "wan"
    shutil.copytree(folders[kind], copied)
    if without:
        path = copied / without
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    entry = wan_entry(copied, lines)
    with pytest.raises(ConfigurationError, match=message):
        list(verify(entry))
