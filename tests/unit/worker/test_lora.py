"""LoRAs of every kind on tiny models: latents equal those of diffusers' pipelines with the same file."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from service.catalog.model_entry import ModelEntry
from tests import lora_files
from tests.diffusers_pipelines import Pipelines, assert_same, assert_same_latents
from tests.lora_files import RANK, Numbers, Weights, layer_weights, product
from tests.tiny_models import animatediff_without_image_parts, save_model, write_entry
from worker.child.fingerprint import weights_digest
from worker.networks.loading import load
from worker.networks.lora import fuse_unet_loras
from worker.networks.models import Models
from worker.verify import verify

BLOCK = "down_blocks.0.attentions.0"
ATTENTION = [f"{BLOCK}.transformer_blocks.0.{name}" for name in ("attn1.to_q", "attn2.to_k", "attn2.to_out.0")]
LINEAR = [*ATTENTION, f"{BLOCK}.transformer_blocks.0.ff.net.0.proj", "time_embedding.linear_1"]
CONVOLUTIONS = [f"{BLOCK}.proj_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "conv_in"]
UNET = [*LINEAR, *CONVOLUTIONS, "up_blocks.0.resnets.0.conv_shortcut", "mid_block.resnets.0.time_emb_proj"]
MOTION = [
    f"{block}.motion_modules.0.transformer_blocks.0.{name}"
    for block in ("down_blocks.0", "mid_block")
    for name in ("attn1.to_q", "attn2.to_out.0")
]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj", "encoder.layers.0.mlp.fc1"]
SCALE = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return animatediff_without_image_parts(tmp_path_factory.mktemp("lora") / "model")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Models:
    return load(write_entry(folder, "animatediff"), "cpu")


@pytest.fixture
def pipelines(folder: Path) -> Pipelines:
    return Pipelines(folder)


def entry_with(folder: Path, *loras: tuple[Weights, str], family: str = "animatediff") -> ModelEntry:
    """The model's entry with LoRA files, each with further lines of its table."""
    lines = ["[sources.own]", 'folder = "."']
    for number, (weights, settings) in enumerate(loras):
        name = f"lora{number}.safetensors"
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / name)
        lines += ["[[models.tiny.loras]]", f'file = "own/{name}"', settings]
    return write_entry(folder, family, *lines)


def with_lora(folder: Path, weights: Weights, settings: str = "") -> Models:
    return load(entry_with(folder, (weights, settings)), "cpu")


def fused(folder: Path, plain: Models, *loras: tuple[Weights, str]) -> tuple[Any, Any]:
    """(image UNet, video UNet) with LoRAs, which `load` makes in the same way."""
    image, video = copy.deepcopy((plain.image_unet, plain.video_unet))
    fuse_unet_loras(entry_with(folder, *loras), image, video)
    return image, video


def same_weights(a: Any, b: Any) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


# -- what diffusers itself can load: its load_lora_weights and fuse_lora ----------------------------------------------

DIFFUSERS: dict[str, Callable[[Weights, Weights, Weights], Weights]] = {
    "kohya": lambda unet, text, _: (
        lora_files.kohya("lora_unet", {name: unet[name] for name in LINEAR}, Numbers())
        | lora_files.kohya("lora_te", text, Numbers(2))
    ),
    "locon": lambda unet, _, __: lora_files.kohya("lora_unet", unet, Numbers()),
    "diffusers": lambda unet, text, _: (
        lora_files.dotted("unet.", unet, Numbers(), ".lora.down.weight", ".lora.up.weight")
        | lora_files.dotted(
            "text_encoder.text_model.",
            text,
            Numbers(2),
            *(f".lora_linear_layer.{end}.weight" for end in ("down", "up")),
        )
    ),
    "old diffusers": lambda unet, _, __: lora_files.old_diffusers(
        "unet.", {name: unet[name] for name in ATTENTION}, Numbers()
    ),
    "peft": lambda unet, text, _: (
        lora_files.dotted("unet.", unet, Numbers(), ".lora_A.weight", ".lora_B.weight")
        | lora_files.dotted("text_encoder.text_model.", text, Numbers(2), ".lora_A.weight", ".lora_B.weight")
    ),
    "motion": lambda _, __, motion: lora_files.old_diffusers("unet.", motion, Numbers()),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("kind", "which"),
    [
        *((kind, "image") for kind in DIFFUSERS if kind != "motion"),
        *((k, "video") for k in ("kohya", "peft", "motion")),
    ],
)
def test_latents_equal_those_of_diffusers_with_the_same_file(
    folder: Path, plain: Models, pipelines: Pipelines, kind: str, which: str
) -> None:
    file = DIFFUSERS[kind](
        layer_weights(pipelines.image.unet, UNET),
        layer_weights(pipelines.text, TEXT),
        layer_weights(pipelines.video.unet, MOTION),
    )
    on = f'on = ["{which}"]' if kind != "motion" else ""
    models = with_lora(folder, file, f"scale = {SCALE}\n{on}")
    pipeline: Any = getattr(pipelines, which)
    pipeline.load_lora_weights(folder, weight_name="lora0.safetensors")
    pipeline.fuse_lora(lora_scale=SCALE)
    assert_same_latents(models, pipelines, which)
    unets = {"image": (models.image_unet, plain.image_unet), "video": (models.video_unet, plain.video_unet)}
    assert {name for name, pair in unets.items() if not same_weights(*pair)} == {which}


# -- what diffusers drops or cannot load: the formula of its paper ----------------------------------------------------


def dora(file: Weights, weights: Weights) -> Weights:
    """arXiv:2402.09353, equation 5: the direction of W + BA with the file's norm for each output."""
    added: Weights = {}
    for name, weight in weights.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        down, up = file[f"{stem}.lora_down.weight"], file[f"{stem}.lora_up.weight"]
        direction = weight + SCALE / RANK * product(down, up, weight)
        norm = direction.flatten(1).norm(dim=1).reshape(file[f"{stem}.dora_scale"].shape)
        added[name] = direction / norm * file[f"{stem}.dora_scale"] - weight
    return added


def scaled(pair: tuple[Weights, Weights]) -> tuple[Weights, Weights]:
    return pair[0], {name: SCALE * value for name, value in pair[1].items()}


def with_own_alphas(weights: Weights) -> tuple[Weights, Weights]:
    """diffusers applies the most frequent alpha to the attention layers of all."""
    file, added, numbers = lora_files.kohya("lora_unet", weights, Numbers()), {}, Numbers()
    for alpha, (name, weight) in enumerate(weights.items()):
        file[f"lora_unet_{name.replace('.', '_')}.alpha"] = torch.tensor(float(alpha))
        added[name] = SCALE * alpha / RANK * product(*lora_files.lora(weight, numbers), weight)
    return file, added


def with_dora(weights: Weights) -> tuple[Weights, Weights]:
    file = lora_files.kohya("lora_unet", weights, Numbers(), dora=True)
    return file, dora(file, weights)


EIGHTS = [name for name in UNET if name != "conv_in"]  # layers whose sides LoKr can divide
FORMULAS: dict[str, tuple[list[str], Callable[[Weights], tuple[Weights, Weights]]]] = {
    "alpha of each layer": (UNET, with_own_alphas),
    "dora": (UNET, with_dora),
    "loha": (UNET, lambda w: scaled(lora_files.loha("lora_unet", w, Numbers()))),
    "loha tucker": (CONVOLUTIONS[1:], lambda w: scaled(lora_files.loha("lora_unet", w, Numbers(), tucker=True))),
    "lokr": (EIGHTS, lambda w: scaled(lora_files.lokr("lora_unet", w, Numbers()))),
    "lokr whole": (EIGHTS, lambda w: scaled(lora_files.lokr("lora_unet", w, Numbers(), split=8, whole=True))),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", FORMULAS)
def test_latents_are_those_of_the_formula(folder: Path, pipelines: Pipelines, kind: str) -> None:
    names, write = FORMULAS[kind]
    file, added = write(layer_weights(pipelines.image.unet, names))
    models = with_lora(folder, file, f"scale = {SCALE}")
    pipelines.add("image", added)
    assert_same_latents(models, pipelines, "image")


def test_text_encoder_takes_the_other_kinds_too(folder: Path, pipelines: Pipelines) -> None:
    weights = {f"text_model.{name}": weight for name, weight in layer_weights(pipelines.text, TEXT).items()}
    file, added = scaled(lora_files.loha("lora_te1", weights, Numbers()))
    models = with_lora(folder, file, f'scale = {SCALE}\non = ["image", "video"]')
    pipelines.add("image", {name.removeprefix("text_model."): value for name, value in added.items()})
    assert models.image_text_encoder is models.video_text_encoder
    assert_same_latents(models, pipelines, "video")


# -- names ------------------------------------------------------------------------------------------------------------


def test_motion_lora_is_known_by_each_of_its_names(folder: Path, plain: Models, pipelines: Pipelines) -> None:
    weights = layer_weights(pipelines.video.unet, MOTION)
    diffusers = lora_files.old_diffusers("unet.", weights, Numbers())
    files = [
        diffusers,
        lora_files.original_motion(diffusers),
        lora_files.kohya("lora_unet", weights, Numbers(), alpha=RANK),
        lora_files.dotted("", weights, Numbers(), ".lora_down.weight", ".lora_up.weight"),
        lora_files.dotted("module.", weights, Numbers(), ".lora_A.default.weight", ".lora_B.default.weight"),
    ]
    (_, expected), *others = (fused(folder, plain, (file, "")) for file in files)
    assert all(same_weights(video, expected) and same_weights(image, plain.image_unet) for image, video in others)


def test_names_of_stable_diffusions_own_code_are_those_of_diffusers(folder: Path, plain: Models) -> None:
    weights = layer_weights(plain.image_unet, [ATTENTION[0], "down_blocks.0.resnets.0.conv1"])
    names = ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.in_layers.2")
    original = dict(zip(names, weights.values(), strict=True))
    expected, found = (
        fused(folder, plain, (lora_files.kohya("lora_unet", w, Numbers()), "")) for w in (weights, original)
    )
    assert same_weights(found[0], expected[0])


def test_bias_is_added_too(folder: Path, plain: Models) -> None:
    layer = plain.image_unet.get_submodule("conv_in")
    file = lora_files.dotted("unet.", {"conv_in": layer.weight}, Numbers(), ".lora_A.weight", ".lora_B.weight")
    bias = Numbers(2)(*layer.bias.shape)
    image, _ = fused(folder, plain, (file | {"unet.conv_in.lora_B.bias": bias}, f"scale = {SCALE}"))
    assert_same(image.conv_in.bias, layer.bias + SCALE * bias)


def test_alpha_in_the_files_metadata_counts(folder: Path, plain: Models) -> None:
    """diffusers' save_lora_weights stores peft's configuration there and no alpha."""
    weights = layer_weights(plain.image_unet, ATTENTION[:2])
    file = lora_files.dotted("unet.", weights, Numbers(), ".lora_A.weight", ".lora_B.weight")
    config = {"unet.r": RANK, "unet.lora_alpha": 6, "unet.alpha_pattern": {ATTENTION[1]: 1}}
    entry, image = entry_with(folder, (file, "")), copy.deepcopy(plain.image_unet)
    save_file(file, folder / "lora0.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    fuse_unet_loras(entry, image, plain.video_unet)
    for name, alpha in zip(ATTENTION[:2], (6, 1), strict=True):
        pair = file[f"unet.{name}.lora_A.weight"], file[f"unet.{name}.lora_B.weight"]
        expected = weights[name] + alpha / RANK * product(*pair, weights[name])
        assert_same(image.get_submodule(name).weight, expected)


def test_verify_passes_what_loads(folder: Path, plain: Models) -> None:
    text = {
        f"text_model.{name}": weight for name, weight in layer_weights(plain.video_text_encoder.encoder, TEXT).items()
    }
    weights, motion = layer_weights(plain.image_unet, EIGHTS), layer_weights(plain.video_unet, MOTION)
    loras = [
        lora_files.kohya("lora_unet", weights, Numbers(), dora=True) | lora_files.kohya("lora_te", text, Numbers()),
        lora_files.loha("lora_unet", weights, Numbers(), tucker=True)[0],
        lora_files.lokr("lora_unet", weights, Numbers())[0],
        lora_files.original_motion(lora_files.old_diffusers("unet.", motion, Numbers())),
    ]
    entry = entry_with(folder, *((file, "") for file in loras))
    lines = [line.partition(" (")[0] for line in verify(entry)]
    assert [line for line in lines if line.startswith("loras")] == [f"loras.{number}: OK" for number in range(4)]


# -- several, and shared weights --------------------------------------------------------------------------------------


def test_loras_add_up_in_any_order(folder: Path, plain: Models) -> None:
    weights = layer_weights(plain.image_unet, UNET)
    files = [
        lora_files.kohya("lora_unet", weights, Numbers(3), dora=True),
        lora_files.loha("lora_unet", weights, Numbers())[0],
    ]
    loras = [(file, 'on = ["image", "video"]') for file in files]
    first, second, *each = (fused(folder, plain, *order) for order in (loras, loras[::-1], loras[:1], loras[1:]))
    base = plain.image_unet.state_dict()
    for name, value in first[0].state_dict().items():
        assert_same(value, second[0].state_dict()[name])
        assert_same(value, base[name] + sum(image.state_dict()[name] - base[name] for image, _ in each))
    shared = dict(first[1].named_parameters())
    assert all(shared[name] is parameter for name, parameter in first[0].named_parameters())


def test_only_what_a_lora_changes_is_stored_twice(folder: Path, plain: Models) -> None:
    text = {
        f"text_model.{name}": weight for name, weight in layer_weights(plain.image_text_encoder.encoder, TEXT).items()
    }
    file = lora_files.kohya("lora_unet", layer_weights(plain.image_unet, UNET), Numbers())
    models = with_lora(folder, file | lora_files.kohya("lora_te", text, Numbers()), 'on = ["image"]')
    changed = [plain.image_unet.get_submodule(name).weight for name in UNET] + list(text.values())
    assert models.weights_bytes == plain.weights_bytes + sum(weight.nbytes for weight in changed)
    assert same_weights(models.video_text_encoder.encoder, plain.video_text_encoder.encoder)


def test_run_does_not_resume_with_another_lora(folder: Path, plain: Models) -> None:
    weights = layer_weights(plain.image_unet, ATTENTION)
    file = lora_files.kohya("lora_unet", weights, Numbers())
    zeros = {key: value if "alpha" in key else torch.zeros_like(value) for key, value in file.items()}
    digests = {weights_digest(plain)}
    for lora in [(zeros, ""), (zeros, "scale = 0.5"), (zeros, 'on = ["video"]'), (file, "")]:
        digests.add(weights_digest(dataclasses.replace(plain, entry=entry_with(folder, lora))))
    assert len(digests) == 5


# -- the other families -----------------------------------------------------------------------------------------------

THREE_D = ["down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.temp_convs.0.conv1.2"]


@pytest.mark.parametrize(("family", "naming"), [("modelscope", "kohya"), ("videocrafter", "peft")])
def test_3d_networks_take_loras_on_the_layers_they_have(tmp_path: Path, family: str, naming: str) -> None:
    folder = tmp_path / "model"
    before = load(save_model(family, folder), "cpu")
    weights = layer_weights(before.video_unet, [ATTENTION[0], *THREE_D])
    file = (
        lora_files.kohya("lora_unet", weights, Numbers(), alpha=RANK)
        if naming == "kohya"
        else lora_files.dotted("unet.", weights, Numbers(), ".lora_A.weight", ".lora_B.weight")
    )
    entry = entry_with(folder, (file, 'on = ["video"]'), family=family)
    list(verify(entry))
    models, numbers = load(entry, "cpu"), Numbers()
    for name, weight in weights.items():
        added = product(*lora_files.lora(weight, numbers), weight)
        assert_same(models.video_unet.get_submodule(name).weight, weight + added)
    assert same_weights(models.image_unet, before.image_unet)
