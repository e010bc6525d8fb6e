"""Tiny models of the three families, from the files of their makers through the real loader to latents and frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from sampler import ImageDenoiser, VideoDenoiser, official_plan, sample
from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError
from service.jobs.request import VideoRequest
from tests.tiny_models import Golden, save_model, save_text, save_unet, save_vae, write_entry
from worker.child.engine import Engine
from worker.networks.assembly import assemble
from worker.networks.loading import IncompatibleModels, load
from worker.networks.models import Models
from worker.networks.text_encoder import PromptTooLong
from worker.networks.weight_checks import WeightsMismatch

FAMILIES = ("animatediff", "modelscope", "videocrafter")
PROMPT, NEGATIVE = "a red circle moving left on a teal background", "low quality"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture(params=FAMILIES)
def entry(request: pytest.FixtureRequest, folder: Path) -> ModelEntry:
    return save_model(request.param, folder)


def animatediff(folder: Path, *lines: str, without: tuple[str, ...] = ()) -> ModelEntry:
    save_model("animatediff", folder)
    for name in without:
        shutil.rmtree(folder / name)
    return write_entry(folder, "animatediff", *lines)


def run(models: Models, golden: Golden, case: str) -> Tensor:
    """The released loop on the loaded networks, fed the golden embeddings."""
    meta, tensors = golden.meta, golden.tensors
    settings = dict(meta["cases"][case])
    seed = settings.pop("seed", None)
    names = {"gi": "image_guidance", "gv": "video_guidance"}
    plan = official_plan(
        models.entry.family,
        models.video_schedule,
        guidance=meta["guidance_scale"],
        **{names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in settings.items()},
    )
    same = models.entry.family == "animatediff"
    text = {
        which: (tensors[f"{prefix}prompt_embeds"], tensors[f"{prefix}negative_{'prompt_' if same else ''}embeds"])
        for which, prefix in (("image", "" if same else "idm_"), ("video", "" if same else "vdm_"))
    }
    image = ImageDenoiser(models.image_unet, *text["image"])
    fps = {"fps": meta["fps"]} if "fps" in meta else {}
    video = VideoDenoiser(models.video_unet, *text["video"], network_args=fps)
    x = tensors["latents"]
    generator = None if seed is None else Generator().manual_seed(seed)
    for step in sample(x, plan, image=image, video=video, generator=generator):
        x = step.latents
    return x


@pytest.mark.parametrize(("family", "case"), [("animatediff", "zz2"), ("videocrafter", "default_6")])
def test_loaded_networks_reproduce_the_released_loop(folder: Path, family: str, case: str) -> None:
    """ModelScope's takes a minute, for its image model sees 64x64: `test_golden.py` runs it, the next test the rest."""
    golden = Golden(family)
    expected = golden.tensors[f"out.{case}"]
    found = run(load(save_model(family, folder), "cpu"), golden, case)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_loaded_weights_are_those_of_the_files(folder: Path) -> None:
    golden = Golden("modelscope")
    models = load(save_model("modelscope", folder), "cpu")
    for unet, name in ((models.image_unet, "idm"), (models.video_unet, "vdm")):
        expected = golden.part(name)
        found = unet.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_engine_makes_a_clip_with_every_family(entry: ModelEntry) -> None:
    engine = Engine(entry, torch.device("cpu"))
    request = VideoRequest(prompt=PROMPT, negative_prompt=NEGATIVE, seed=3, num_frames=3, num_inference_steps=3)
    first, again = (engine.generate(entry.resolve(request)).frames for _ in range(2))
    assert first.shape == (3, 32, 32, 3)
    assert torch.equal(first, again)


def test_video_has_the_asked_size_also_where_the_latents_cannot_be_halved(entry: ModelEntry) -> None:
    """Bug: 100x100 became 96x96. Latents of 5x3 and 1x1 work: the UNets upsample to the sizes that they came from."""
    odd = entry.model_copy(update={"sizes": ("20x12", "4x4")})
    engine = Engine(odd, torch.device("cpu"))
    for size, shape in {"20x12": (2, 12, 20, 3), "4x4": (2, 4, 4, 3)}.items():
        request = VideoRequest(prompt=PROMPT, size=size, seed=3, num_frames=2, num_inference_steps=2)
        assert engine.generate(odd.resolve(request)).frames.shape == shape


def test_half_precision_is_the_same_network_within_its_rounding(entry: ModelEntry) -> None:
    """A GPU runs half precision; bfloat16 runs on a CPU too."""
    x = torch.randn(1, 4, 3, 8, 8, generator=Generator().manual_seed(1))
    width = {"animatediff": 32}.get(entry.family, 16)
    text = torch.randn(1, 7, width, generator=Generator().manual_seed(2))
    fps = {"fps": 8} if entry.family == "videocrafter" else {}
    answers: list[Tensor] = []
    for dtype in (torch.float32, torch.bfloat16):
        unet = assemble(entry, dtype).video_unet
        assert {parameter.dtype for parameter in unet.parameters()} == {dtype}
        video = VideoDenoiser(unet, text.to(dtype), text.to(dtype), network_args=fps)
        with torch.no_grad():
            answers.append(video(x, 500, 0.5, 1.0))
    assert (answers[0] - answers[1]).abs().max() <= 0.03 * answers[0].abs().max()  # 0.4 % a rounding, dozens of them


def test_each_network_reads_the_embeddings_of_its_own_encoder(folder: Path) -> None:
    models = load(save_model("modelscope", folder), "cpu")
    texts = models.encode([PROMPT, NEGATIVE])
    assert texts.image.shape == (2, 16, 32)
    assert texts.video.shape == (2, 16, 16)
    image, video = models.denoisers(texts[:1], texts[1:])
    assert torch.equal(image.cond, texts.image[:1])
    assert torch.equal(video.uncond, texts.video[1:])


def test_text_encoders_are_one_where_the_image_model_has_none_of_its_own(folder: Path) -> None:
    models = load(animatediff(folder, without=("image_tokenizer", "image_text_encoder")), "cpu")
    texts = models.encode(PROMPT)
    assert models.image_text_encoder is models.video_text_encoder
    assert torch.equal(texts.image, texts.video)


def test_prompt_that_one_encoder_cannot_read_whole_is_refused(folder: Path) -> None:
    models = load(save_model("modelscope", folder), "cpu")
    models.image_text_encoder.tokenizer.model_max_length = 8
    with pytest.raises(PromptTooLong, match="11 tokens, the text encoder takes 8"):
        models.encode(PROMPT)


def test_videocrafters_network_gets_the_clips_frame_rate_or_the_models_own(folder: Path) -> None:
    entry = save_model("videocrafter", folder)
    models = load(entry, "cpu")
    assert models.denoisers(PROMPT, fps=12)[1].network_args == {"fps": 12}
    assert models.denoisers(PROMPT)[1].network_args == {"fps": 8}
    fixed = load(entry.model_copy(update={"network_fps": 24}), "cpu")
    assert fixed.denoisers(PROMPT, fps=12)[1].network_args == {"fps": 24}
    tensors = Golden("videocrafter").tensors
    for fps, timestep in ((8, 17), (24, 501)):
        expected = tensors[f"unet_y_t{timestep}_fps{fps}"]
        with torch.no_grad():
            eps = models.video_unet(tensors["unet_x"], timestep, tensors["unet_e"], fps=fps)
        assert (eps - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_image_model_is_the_video_models_own_base_without_a_second_copy(folder: Path) -> None:
    entry = animatediff(folder, without=("image_unet", "image_tokenizer", "image_text_encoder"))
    models = load(entry, "cpu")
    inside = models.video_unet.state_dict()
    own = models.image_unet.state_dict()
    assert all(inside[name].data_ptr() == value.data_ptr() for name, value in own.items())
    # one object, so that moving both to a GPU moves it once
    theirs = dict(models.video_unet.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in models.image_unet.named_parameters())
    base = Golden("animatediff").part("base")
    assert all(torch.equal(own[name], value) for name, value in base.items())


# -- LoRA ------------------------------------------------------------------------------------------------------------

TARGET = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"  # 16 wide in the golden networks
RANK, ALPHA, SCALE = 2, 4.0, 0.5


def lora(folder: Path, naming: str) -> Tensor:
    """Write a LoRA of one weight; returns what it adds to that weight at SCALE."""
    generator = Generator().manual_seed(1)
    down, up = torch.randn(RANK, 16, generator=generator), torch.randn(16, RANK, generator=generator)
    folder.mkdir(exist_ok=True)
    if naming == "kohya":
        key = f"lora_unet_{TARGET.replace('.', '_')}"
        text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        weights = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(ALPHA)}
        weights |= {
            f"{text}.lora_down.weight": torch.ones(RANK, 32),
            f"{text}.lora_up.weight": torch.ones(32, RANK),
            f"{text}.alpha": torch.tensor(ALPHA),
        }
        factor = ALPHA / RANK
    else:
        weights = {f"unet.{TARGET}.lora_A.weight": down, f"unet.{TARGET}.lora_B.weight": up}
        factor = 1.0
    save_file(weights, folder / "style.safetensors")
    return SCALE * factor * up @ down


@pytest.mark.sample(2)
@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
@pytest.mark.parametrize("own_unet", [True, False], ids=["other fine-tune", "the base"])
def test_lora_is_added_to_the_image_model_and_to_nothing_else(folder: Path, naming: str, own_unet: bool) -> None:
    plain = load(animatediff(folder, without=() if own_unet else ("image_unet",)), "cpu")
    added = lora(folder / "loras", naming)
    lines = (
        f"lora_scale = {SCALE}",
        'components = { lora = "style/style.safetensors" }',
        "[sources.style]",
        'folder = "loras"',
    )
    models = load(write_entry(folder, "animatediff", *lines), "cpu")
    before, after = plain.image_unet.state_dict(), models.image_unet.state_dict()
    assert before.keys() == after.keys()
    assert torch.allclose(after[f"{TARGET}.weight"], before[f"{TARGET}.weight"] + added, atol=1e-6)
    assert all(torch.equal(after[name], before[name]) for name in before if name != f"{TARGET}.weight")
    video = plain.video_unet.state_dict()
    assert all(torch.equal(value, video[name]) for name, value in models.video_unet.state_dict().items())


def test_lora_of_another_architecture_is_refused(folder: Path) -> None:
    save_model("animatediff", folder)
    lora(folder / "loras", "diffusers")
    file = folder / "loras" / "style.safetensors"
    save_file({name: torch.zeros(4, 99) if "lora_A" in name else v for name, v in load_file(file).items()}, file)
    entry = write_entry(
        folder, "animatediff", 'components = { lora = "s/style.safetensors" }', "[sources.s]", 'folder = "loras"'
    )
    with pytest.raises(ConfigurationError, match=r"LoRA .*style\.safetensors does not fit"):
        load(entry, "cpu")


# -- what does not fit together --------------------------------------------------------------------------------------


def test_image_model_of_another_latent_space_is_refused(folder: Path) -> None:
    entry = save_model("modelscope", folder)
    golden = Golden("modelscope")
    config = {**golden.meta["idm_config"], "in_channels": 8, "out_channels": 8}
    from diffusers import UNet2DConditionModel

    save_unet(folder / "image_unet", config, UNet2DConditionModel(**config).state_dict())
    with pytest.raises(
        IncompatibleModels, match="image model takes 8 latent channels and returns 8, the autoencoder has 4"
    ):
        load(entry, "cpu")


def test_autoencoder_of_another_latent_space_is_refused(folder: Path) -> None:
    entry = save_model("videocrafter", folder)
    save_vae(folder / "vae", latent_channels=3)
    with pytest.raises(IncompatibleModels, match="takes 4 latent channels and returns 4, the autoencoder has 3"):
        load(entry, "cpu")


def test_image_model_without_an_encoder_of_its_width_is_refused(folder: Path) -> None:
    save_model("modelscope", folder)
    for name in ("image_tokenizer", "image_text_encoder"):
        shutil.rmtree(folder / name)
    with pytest.raises(IncompatibleModels, match="image model takes embeddings of dim 32, its text encoder returns 16"):
        load(write_entry(folder, "modelscope"), "cpu")


def test_motion_adapter_made_for_fewer_frames_is_refused(folder: Path) -> None:
    entry = animatediff(folder)
    long = entry.model_copy(update={"num_frames": entry.num_frames.model_copy(update={"max": 64})})
    with pytest.raises(IncompatibleModels, match=r"num_frames\.max=64, but the motion adapter takes 32 frames"):
        load(long, "cpu")


@pytest.mark.parametrize("change", ["lacks", "has unexpected", "has with another shape"])
def test_weights_that_are_not_the_configurations_are_refused(folder: Path, change: str) -> None:
    """diffusers would fill a missing weight with random numbers and go on."""
    entry = save_model("modelscope", folder)
    file = folder / "image_unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    match change:
        case "lacks":
            del weights["conv_in.bias"]
        case "has unexpected":
            weights["conv_extra.bias"] = torch.zeros(1)
        case _:
            weights["conv_in.bias"] = torch.zeros(3)
    save_file(weights, file)
    with pytest.raises(WeightsMismatch, match=rf"image_unet does not fit its config.json: {change} conv_\w+.bias"):
        load(entry, "cpu")


def test_names_of_old_checkpoints_are_known(folder: Path) -> None:
    """Text encoders saved before transformers 5 carry the prefix text_model, and a buffer that is no weight."""
    entry = save_model("modelscope", folder)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name}": value for name, value in load_file(file).items()}
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(16)[None]}, file, {"format": "pt"})
    before = load(save_model("modelscope", folder.parent / "new"), "cpu").encode(PROMPT).video
    assert torch.equal(load(entry, "cpu").encode(PROMPT).video, before)


def test_weights_of_a_variant_are_taken_and_no_others(folder: Path) -> None:
    save_model("modelscope", folder)
    plain = folder / "image_unet" / "diffusion_pytorch_model.safetensors"
    save_file({"other": torch.zeros(1)}, plain.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    lines = 'components = { image_unet = "half/image_unet" }', "[sources.half]", 'folder = "."'
    with pytest.raises(ConfigurationError, match='variants fp16, non_ema of its weights; choose one: variant = "fp16"'):
        load(write_entry(folder, "modelscope", *lines), "cpu")
    entry = write_entry(folder, "modelscope", *lines, 'variant = "fp16"')
    assert load(entry, "cpu").image_unet.config.in_channels == 4


def test_v_prediction_is_said_for_each_network_by_itself(folder: Path) -> None:
    entry = save_model("modelscope", folder)
    file = folder / "image_scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    image, video = load(entry, "cpu").denoisers(PROMPT)
    assert (image.prediction_type, video.prediction_type) == ("v_prediction", "epsilon")
    overridden = entry.model_copy(update={"image_schedule": {"prediction_type": "epsilon"}})
    assert load(overridden, "cpu").denoisers(PROMPT)[0].prediction_type == "epsilon"


def test_schedule_of_the_entry_wins_over_the_schedulers_file(folder: Path) -> None:
    entry = animatediff(folder)
    linear = entry.model_copy(update={"video_schedule": {"beta_schedule": "linear"}})
    models, changed = load(entry, "cpu"), load(linear, "cpu")
    assert changed.image_schedule == models.image_schedule
    assert changed.video_schedule.alphas_cumprod[500] < models.video_schedule.alphas_cumprod[500]


def test_schedule_that_cannot_be_run_is_refused_with_its_file(folder: Path) -> None:
    entry = animatediff(folder).model_copy(update={"video_schedule": {"beta_schedule": "wavy"}})
    with pytest.raises(ConfigurationError, match=r"of the video model.*scheduler_config.json.*'wavy' is not supported"):
        load(entry, "cpu")


def test_tokenizer_and_encoder_of_two_models_are_refused(folder: Path) -> None:
    entry = save_model("modelscope", folder)
    save_text(folder / "other", "", 16)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 30}))
    file = folder / "text_encoder" / "model.safetensors"
    kept = {name: value[:30].clone() if "token_embedding" in name else value for name, value in load_file(file).items()}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ConfigurationError, match="use the tokenizer that the encoder was trained with"):
        load(entry, "cpu")
