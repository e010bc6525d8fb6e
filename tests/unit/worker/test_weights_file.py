"""What a safetensors file is, is read from names and shapes; what cannot be used is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from service.errors import ConfigurationError
from service.process.startup import one_sentence_errors
from worker.adding.weights_file import CHECKPOINT, INVERSION, LORA, MOTION, SPARSE, VAE, WeightsFile

UNET = "model.diffusion_model."
CONV_IN, CROSS = f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
MODULE = "down_blocks.{}.motion_modules.0.temporal_transformer.norm.weight"

ACCEPTED = {
    "sd1": (CHECKPOINT, {CONV_IN: (2, 4, 3, 3), CROSS: (2, 768), "cond_stage_model.x": (1,)}),
    "unet": (CHECKPOINT, {CONV_IN: (2, 4, 3, 3), CROSS: (2, 1024)}),
    "sdxl": (CHECKPOINT, {CONV_IN: (2, 4, 3, 3), "conditioner.embedders.0.transformer.x": (1,)}),
    "sdxl unet": (CHECKPOINT, {CONV_IN: (2, 4, 3, 3), CROSS.replace("1.1", "4.1"): (2, 2048)}),
    "sdxl motion": (MOTION, {MODULE.format(block): (320 * 2**block,) for block in range(3)}),
    "sdxl embedding": (INVERSION, {"clip_l": (1, 768), "clip_g": (1, 1280)}),
    "v3": (MOTION, {MODULE.format(block): (width,) for block, width in enumerate((320, 640, 1280, 1280))}),
    "lightning": (MOTION, {"down_blocks.0.motion_modules.0.norm.weight": (320,)}),
    "vae": (VAE, {"first_stage_model.decoder.up.0.block.0.conv1.weight": (2, 2)}),
    "vae in the diffusers layout": (VAE, {"decoder.up_blocks.0.resnets.0.conv1.weight": (2, 2)}),
    "kohya": (LORA, {"lora_unet_down_blocks_0_attn1_to_q.lora_down.weight": (2, 2)}),
    "peft": (LORA, {"unet.down_blocks.0.attn1.to_q.lora_A.weight": (2, 2)}),
    "loha": (LORA, {"lora_unet_x.hada_w1_a": (2, 2)}),
    "lokr": (LORA, {"lora_unet_x.lokr_w1": (2, 2)}),
    "motion lora": (LORA, {MODULE.format(0).replace("norm", "attn.processor.to_q_lora.down"): (2, 2)}),
    "sparsectrl": (SPARSE, {"controlnet_cond_embedding.weight": (2, 5, 3, 3), MODULE.format(0): (320,)}),
    "sparsectrl, wrapped": (SPARSE, {"module.controlnet_cond_embedding.weight": (2,), MODULE.format(0): (320,)}),
    "embedding": (INVERSION, {"emb_params": (2, 768)}),
    "diffusers embedding": (INVERSION, {"<cat>": (768,)}),
}
REFUSED = {
    "inpainting": ({CONV_IN: (2, 9, 3, 3), CROSS: (2, 768)}, "also takes an image"),
    "pix2pix": ({CONV_IN: (2, 8, 3, 3)}, "also takes an image"),
    "sdxl inpainting": ({CONV_IN: (2, 9, 3, 3), "conditioner.embedders.0.transformer.x": (1,)}, "also takes an image"),
    "sdxl refiner": ({CONV_IN: (2, 4, 3, 3), "conditioner.embedders.0.model.x": (1,)}, "an SDXL refiner: it refines"),
    "playground": ({CONV_IN: (2, 4, 3, 3), CROSS: (2, 2048), "edm_mean": (4,)}, "Playground 2.5: its noise schedule"),
    "unclip": ({CONV_IN: (2, 4, 3, 3), CROSS: (2, 1024), f"{UNET}label_emb.0.0.weight": (2, 2)}, "an unCLIP checkp"),
    "videocrafter": ({CONV_IN: (2, 4, 3, 3), f"{UNET}input_blocks.1.0.temopral_conv.x": (1,)}, "VideoCrafter or Mod"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (2, 2)}, "diffusion transformer"),
    "sd3": ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (2, 2)}, "diffusion transformer"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": (2, 4, 3, 3)}, "ControlNet"),
    "sparsectrl scribble": (
        {"controlnet_cond_embedding.conv_in.weight": (2, 4, 3, 3), MODULE.format(0): (320,)},
        "a SparseCtrl for sketches: it does not read pictures; use SparseCtrl RGB",
    ),
    "controlnet in the diffusers layout": (
        {"controlnet_cond_embedding.conv_in.weight": (2, 3, 3, 3)},
        "a ControlNet: ",
    ),
    "ip-adapter": ({"image_proj.norm.weight": (2,), "ip_adapter.1.to_k_ip.weight": (2, 2)}, "IP-Adapter"),
    "hotshot": ({"down_blocks.0.temporal_attentions.0.norm.weight": (320,)}, "HotshotXL"),
    "vae with 16 channels": ({"decoder.conv_in.weight": (2, 16, 3, 3), "decoder.up.0.x": (1,)}, "latent space"),
    "text encoder": ({"text_model.embeddings.x": (2, 2), "a": (1,), "b": (1,)}, "is a text encoder"),
    "unet in the diffusers layout": ({"down_blocks.0.resnets.0.x": (2,)}, "without its config.json"),
    "something": ({"a.weight": (2, 2, 2, 2), "b": (1,), "c": (1,)}, "named a.weight, b, c"),
}


def write(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float16) -> WeightsFile:
    file = folder / "x.safetensors"
    save_file({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}, file)
    return WeightsFile.read(file)


@pytest.mark.parametrize("name", ACCEPTED)
def test_kinds(tmp_path: Path, name: str) -> None:
    kind, shapes = ACCEPTED[name]
    file = write(tmp_path, shapes)
    assert file.require(kind) is file
    for other in {CHECKPOINT, MOTION, SPARSE, VAE, LORA, INVERSION} - {kind}:
        with pytest.raises(ConfigurationError, match=f"is a {kind}, not a {other}; give it with --"):
            file.require(other)


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_family_uses(tmp_path: Path, name: str) -> None:
    shapes, said = REFUSED[name]
    with pytest.raises(ConfigurationError, match=said):
        write(tmp_path, shapes).require(CHECKPOINT)


@pytest.mark.parametrize("name", ACCEPTED)
def test_files_of_sdxl_and_others_are_distinguished_where_they_say_so(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, ACCEPTED[name][1])
    if name.startswith("sdxl"):
        assert file.for_family("animatediff-sdxl") is file
        with pytest.raises(ConfigurationError, match=r"is of SDXL: its latents .* those of family animatediff; use"):
            file.for_family("animatediff")
    else:
        assert file.for_family("animatediff") is file
    if name in ("sd1", "unet", "v3", "embedding"):
        with pytest.raises(ConfigurationError, match="is not of SDXL: family animatediff-sdxl has other latents"):
            file.for_family("animatediff-sdxl")


def test_name_in_a_file_writes_no_control_characters_to_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"its weights are named a\.\?\[2J") as ended, one_sentence_errors():
        write(tmp_path, {"a.\x1b[2J": (2, 2, 2, 2), "b": (1,), "c": (1,)}).require(CHECKPOINT)
    assert str(ended.value).isprintable()


def test_quantised_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="F8_E4M3; use its version in float16"):
        write(tmp_path, {CONV_IN: (2, 4, 3, 3)}, torch.float8_e4m3fn).require(CHECKPOINT)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF\3\0\0\0", b"\xff" * 100, b"\2\0\0\0\0\0\0\0[]", b"<!doctype html>" * 9]
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x\.safetensors is not a safetensors file, or is cut off"):
        WeightsFile.read(file)


def test_cut_off_files_and_headers_that_begin_like_a_pickle(tmp_path: Path) -> None:
    write(tmp_path, {"emb_params": (2, 768)})
    file = tmp_path / "x.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ConfigurationError, match="cut off"):
        WeightsFile.read(file)
    header = content[8 : 8 + content[0]].ljust(640)  # 640 is 80 02 00 00 00 00 00 00
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + content[0] :])
    assert WeightsFile.read(file).shapes == {"emb_params": (2, 768)}


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.bin", "a.PKL", "a.safetensors"])
def test_pickles(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"is a pickle.*weights_only=True.*\.safetensors"):
        WeightsFile.read(tmp_path / name)
