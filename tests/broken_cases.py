"""The broken and odd model folders by name, for `tests.broken_models.broken_model`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel

from tests.broken_models import (
    TEXT,
    UNET,
    Broken,
    as_file,
    as_folder,
    broken_link,
    cast_all,
    config,
    cut,
    delete,
    longer_header,
    one_value,
    rename,
    several,
    shards,
    variants,
    vocabulary_files,
    weights,
    write,
)
from tests.broken_sums import LORA, SUMS, lora
from tests.tiny_models import Golden, save_vae

UNET_FILE, VAE_FILE = f"unet/{UNET}.safetensors", f"vae/{UNET}.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = "<!DOCTYPE html>\n<html><title>404</title></html>"
AGAIN = "download it again"


def other_unet(name: str, **changes: Any) -> Any:
    """Save an untrained UNet, with fields of the golden one's config changed."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        UNet2DConditionModel(**{**Golden("animatediff").meta["idm_config"], **changes}).save_pretrained(folder / name)

    return change


def other_adapter(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / "motion_adapter")
        adapter = MotionAdapter(**{**Golden("animatediff").meta["adapter_config"], **changes})
        adapter.save_pretrained(folder / "motion_adapter")

    return change


HALF = ('components = { unet = "half/unet" }', "[sources.half]", 'folder = "."', 'variant = "fp16"')

PLACES = {
    "component is a file": Broken(as_file("unet"), ("unet is not a folder", "diffusers layout")),
    "tokenizer is a file": Broken(as_file("tokenizer"), ("tokenizer is not a folder",)),
    "scheduler is a file": Broken(as_file("scheduler"), ("scheduler is not a folder",)),
    "config is a folder": Broken(as_folder("vae/config.json"), ("vae/config.json is not a file", AGAIN)),
    "weights are a folder": Broken(as_folder(VAE_FILE), (f"{VAE_FILE} is not a file", AGAIN)),
    "tokenizer.json is a folder": Broken(as_folder("tokenizer/tokenizer.json"), ("tokenizer.json is not a file",)),
    "component is missing": Broken(lambda f: shutil.rmtree(f / "vae"), ("lacks vae", "put it there")),
    "component is a broken link": Broken(broken_link("unet"), ("lacks unet", "is a link to what does not exist")),
    "optional component is a broken link": Broken(broken_link("image_unet"), ("lacks image_unet", "is a link to what")),
    "component is a link to itself": Broken(
        lambda folder: (shutil.rmtree(folder / "vae"), (folder / "vae").symlink_to("vae")),
        ("lacks vae", "symbolic"),
    ),
    "config is missing": Broken(delete("unet/config.json"), ("unet/config.json is missing", AGAIN)),
    "config is a broken link": Broken(broken_link("unet/config.json"), ("config.json is a link to what does not",)),
    "weights are a broken link": Broken(broken_link(UNET_FILE), (f"{UNET_FILE} is a link to what does not exist",)),
    "weights are missing": Broken(delete(UNET_FILE), (f"unet has no {UNET}.safetensors", AGAIN)),
    "weights of the other library's name": Broken(
        rename(UNET_FILE, "unet/model.safetensors"), (f"unet has no {UNET}.safetensors; it has model.safetensors",)
    ),
    "only a pickle": Broken(
        rename(UNET_FILE, f"unet/{UNET}.bin"), (f"unet has only pickles ({UNET}.bin)", "convert", "save_pretrained")
    ),
    "only a text encoder's pickle": Broken(
        rename("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
        ("only pickles (pytorch_model.bin)",),
    ),
}

CONTENTS = {
    "empty weights": Broken(write(UNET_FILE, b""), (f"{UNET_FILE} is empty", AGAIN)),
    "weights cut in the header": Broken(cut(UNET_FILE, 500), (UNET_FILE, AGAIN)),
    "weights cut at the end": Broken(cut(VAE_FILE, 90_000), (VAE_FILE, AGAIN)),
    "seven bytes of weights": Broken(
        cut("text_encoder/model.safetensors", 7), ("text_encoder/model.safetensors", AGAIN)
    ),
    "git-LFS pointer": Broken(write(UNET_FILE, LFS), (f"{UNET_FILE} is a git-LFS pointer", "git lfs pull")),
    "git-LFS pointer of a tokenizer": Broken(
        write("tokenizer/tokenizer.json", LFS), ("tokenizer/tokenizer.json is a git-LFS pointer", "git lfs pull")
    ),
    "web page as weights": Broken(write(UNET_FILE, HTML), (f"{UNET_FILE} is a web page", AGAIN)),
    "web page as config": Broken(write("vae/config.json", f"\n {HTML}"), ("vae/config.json is a web page", AGAIN)),
    "pickle named safetensors": Broken(write(UNET_FILE, b"PK\x03\x04" + b"\0" * 4000), (UNET_FILE, AGAIN)),
    "header with wrong sizes": Broken(
        longer_header(UNET_FILE, lambda h: h["conv_in.bias"].update(shape=[9999])), (UNET_FILE, AGAIN)
    ),
    "header with an unknown dtype": Broken(
        longer_header(UNET_FILE, lambda h: h["conv_in.bias"].update(dtype="F7")), (UNET_FILE, AGAIN)
    ),
    "header that is no table": Broken(longer_header(UNET_FILE, lambda h: h.update(a=3)), (UNET_FILE, AGAIN)),
    "config is a list": Broken(write("unet/config.json", "[]"), ("unet/config.json holds a JSON list",)),
    "config is cut": Broken(cut("unet/config.json", 100), ("unet/config.json is not JSON", AGAIN)),
    "config is UTF-16": Broken(
        write("vae/config.json", json.dumps({}).encode("utf-16")), ("vae/config.json is not UTF-8 text",)
    ),
    "config is nested without end": Broken(write("vae/config.json", "[" * 200_000), ("vae/config.json is not JSON",)),
    "config has no fields": Broken(write("vae/config.json", "{}"), ("vae does not fit its config.json",)),
}

CLASSES = {
    "3D UNet": Broken(
        config("unet", _class_name="UNet3DConditionModel"), ("is that of a UNet3DConditionModel", "unet")
    ),
    "motion UNet": Broken(config("unet", _class_name="UNetMotionModel"), ("unet/config.json is that of a UNetMotion",)),
    "tiny autoencoder": Broken(config("vae", _class_name="AutoencoderTiny"), ("vae/config.json", "AutoencoderTiny")),
    "other autoencoder": Broken(config("vae", _class_name="AsymmetricAutoencoderKL"), ("be a AutoencoderKL",)),
    "class that is a list": Broken(config("vae", _class_name=["A", "B"]), ("vae/config.json",)),
    "T5": Broken(config("text_encoder", architectures=["T5EncoderModel"]), ("text_encoder/config.json", "T5EncoderM")),
    "text encoder with projection": Broken(
        config("text_encoder", architectures=["CLIPTextModelWithProjection"]), ("CLIPTextModelWithProjection",)
    ),
    "SDXL UNet": Broken(config("unet", addition_embed_type="text_time"), ("addition_embed_type", "SDXL")),
    "UNet with classes": Broken(config("unet", class_embed_type="timestep"), ("class_embed_type='timestep' is not",)),
    "UNet with an image encoder": Broken(config("unet", encoder_hid_dim_type="ip_image_proj"), ("encoder_hid_dim",)),
    "distilled UNet": Broken(other_unet("unet", time_cond_proj_dim=8), ("time_cond_proj_dim=8", "distilled")),
    "unknown activation": Broken(config("unet", act_fn="wavy"), ("unet/config.json cannot be loaded", "wavy")),
    "unknown block": Broken(config("vae", down_block_types=["A", "B", "C"]), ("vae/config.json cannot be loaded",)),
    "text as a number": Broken(config("unet", in_channels="four"), ("unet/config.json cannot be loaded",)),
    "more layers than can be built": Broken(config("unet", layers_per_block=10**7), ("layers_per_block=10000000",)),
    "wider than memory": Broken(config("text_encoder", hidden_size=10**13), ("text_encoder/config.json",)),
    "negative width": Broken(config("text_encoder", hidden_size=-32), ("text_encoder/config.json",)),
    "activation of the encoder": Broken(config("text_encoder", hidden_act="wavy"), ("text_encoder/config.json",)),
    "scaling by zero": Broken(config("vae", scaling_factor=0), ("vae/config.json: scaling_factor=0",)),
}

WEIGHTS = {
    "NaN in the UNet": Broken(weights("unet", one_value("conv_out.bias", float("nan"))), (UNET_FILE, "conv_out.bias")),
    "infinity in the VAE": Broken(
        weights("vae", one_value("decoder.conv_in.weight", float("-inf"))),
        (VAE_FILE, "decoder.conv_in.weight holds NaN"),
    ),
    "NaN in the text encoder": Broken(
        weights("text_encoder", one_value("final_layer_norm.bias", float("nan")), TEXT),
        ("text_encoder/model.safetensors", "final_layer_norm.bias holds NaN or infinity"),
    ),
    "NaN in half precision": Broken(
        several(weights("vae", cast_all(torch.float16)), weights("vae", one_value("quant_conv.bias", float("nan")))),
        (VAE_FILE, "quant_conv.bias"),
    ),
    "more than float16 holds": Broken(
        weights("unet", one_value("conv_in.bias", -1e6)), (UNET_FILE, "conv_in.bias holds 1e+06", 'dtype = "bfloat16"')
    ),
    "more than float16 holds, in bfloat16": Broken(
        weights("unet", one_value("conv_in.bias", -1e6)), entry={"dtype": "bfloat16"}
    ),
    "float64 that float32 cannot hold": Broken(
        several(weights("vae", cast_all(torch.float64)), weights("vae", one_value("quant_conv.bias", 1e300))),
        (VAE_FILE, "quant_conv.bias"),
        entry={"dtype": "float32"},
    ),
    "float16": Broken(weights("unet", cast_all(torch.float16))),
    "float64": Broken(weights("vae", cast_all(torch.float64))),
    "int8": Broken(weights("unet", cast_all(torch.int8)), ("unet does not fit", "a dtype that is no float")),
    "float8": Broken(weights("unet", cast_all(torch.float8_e4m3fn)), ("unet does not fit", "unquantised")),
    "weight lacks": Broken(
        weights("vae", lambda w: {k: v for k, v in w.items() if k != "quant_conv.bias"}), ("lacks",)
    ),
    "old and new names": Broken(
        weights("text_encoder", lambda w: w | {f"text_model.{k}": v.clone() for k, v in w.items()}, TEXT),
        ("text_encoder holds the weight", "twice"),
    ),
    "no weights in the file": Broken(weights("vae", lambda w: {"a": torch.zeros(1)}), ("vae does not fit", "lacks")),
}

SHARDS = {
    "shards with an index": Broken(shards(lambda where: None)),
    "shards without an index": Broken(shards()),
    "shard that is missing": Broken(
        shards(lambda where: None, delete=2), (f"{UNET}-00002-of-00002.safetensors", AGAIN)
    ),
    "shard that is missing, no index": Broken(shards(delete=1), ("unet has 1 of 2 shards", AGAIN)),
    "shard outside the folder": Broken(
        shards(lambda where: where.update(a=f"../vae/{UNET}.safetensors")), ("index.json names the shard '../vae",)
    ),
    "shard with an absolute path": Broken(shards(lambda where: where.update(a="/etc/passwd")), ("'/etc/passwd'",)),
    "index without names": Broken(shards(lambda where: where.clear()), ("index.json has no weight_map",)),
    "index that names an own file": Broken(
        shards(lambda where: where.update(a=3)), ("index.json names the shard '3'",)
    ),
    "weights in two shards": Broken(shards(lambda where: None, twice=True), ("unet holds the weight", "twice")),
    "index next to one file": Broken(write(f"unet/{UNET}.safetensors.index.json", "[]")),
    "only variant": Broken(variants("fp16")),
    "plain and variants": Broken(variants("fp16", "non_ema", plain=True)),
    "two variants": Broken(variants("fp16", "non_ema"), ('variant = "fp16"',)),
    "named variant": Broken(variants("fp16", "non_ema"), lines=HALF),
    "variant that is not there": Broken(lambda f: None, (f"unet has no {UNET}.fp16", "no variant"), lines=HALF),
}

TEXTS = {
    "vocab.json and merges.txt": Broken(vocabulary_files()),
    "no merges.txt": Broken(vocabulary_files(without="merges.txt"), ("tokenizer lacks merges.txt", AGAIN)),
    "no vocab.json": Broken(vocabulary_files(without="vocab.json"), ("tokenizer lacks vocab.json", AGAIN)),
    "merges.txt that is cut": Broken(
        vocabulary_files(merges_kept=60), ("tokenizer: merges are missing, without which 12 tokens", AGAIN)
    ),
    "merges.txt of a comment": Broken(vocabulary_files(merges_kept=0), ("tokenizer: merges are missing",)),
    "text encoder without its tokenizer": Broken(
        lambda folder: shutil.copytree(folder / "text_encoder", folder / "image_text_encoder"),
        ("image_text_encoder without image_tokenizer",),
    ),
    "no tokenizer files": Broken(delete("tokenizer/tokenizer.json"), ("tokenizer lacks vocab.json",)),
    "tokenizer.json is not JSON": Broken(
        write("tokenizer/tokenizer.json", "{"), ("tokenizer/tokenizer.json is not JSON",)
    ),
    "tokenizer of another kind": Broken(
        config("tokenizer", "tokenizer.json", model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        ("tokenizer",),
    ),
    "tokenizer without a model": Broken(config("tokenizer", "tokenizer.json", model={}), ("tokenizer",)),
    "tokenizer for no token": Broken(config("tokenizer", "tokenizer_config.json", model_max_length=2), ("tokenizer",)),
    "tokenizer without its config": Broken(delete("tokenizer/tokenizer_config.json")),
    "vocabulary of another size": Broken(
        several(
            config("text_encoder", vocab_size=30),
            weights(
                "text_encoder", lambda w: {k: v[:30].clone() if "token_emb" in k else v for k, v in w.items()}, TEXT
            ),
        ),
        ("the tokenizer has 586 tokens, its text encoder 30",),
    ),
    "scheduler is not JSON": Broken(
        write("scheduler/scheduler_config.json", "beta"), ("scheduler/scheduler_config.json is not JSON", AGAIN)
    ),
    "scheduler is missing": Broken(delete("scheduler/scheduler_config.json"), ("scheduler_config.json is missing",)),
    "unknown betas": Broken(
        config("scheduler", "scheduler_config.json", beta_schedule="wavy"), ("scheduler_config.json", "wavy")
    ),
    "betas that are texts": Broken(
        config("scheduler", "scheduler_config.json", beta_start="small"), ("scheduler_config.json", "beta_start")
    ),
}

FITS = {
    "inpainting UNet": Broken(other_unet("unet", in_channels=9), ("takes 9 latent channels",)),
    "image UNet of another latent space": Broken(
        other_unet("image_unet", in_channels=8, out_channels=8), ("image model takes 8 latent channels",)
    ),
    "image UNet of another text width": Broken(
        other_unet("image_unet", cross_attention_dim=48), ("image model takes embeddings of dim 48",)
    ),
    "config of another width": Broken(config("unet", block_out_channels=[32, 64]), ("unet does not fit its config",)),
    "VAE of another latent space": Broken(
        lambda folder: save_vae(folder / "vae", latent_channels=3), ("the autoencoder has 3",)
    ),
    "adapter of another depth": Broken(
        other_adapter(block_out_channels=[16, 32, 32]),
        ("motion_adapter cannot be loaded", "different number of blocks"),
    ),
    "adapter of other layers": Broken(
        other_adapter(motion_layers_per_block=2), ("motion_adapter cannot be loaded", "different number of layers")
    ),
    "adapter of another width": Broken(
        other_adapter(block_out_channels=[32, 64]), ("motion_adapter cannot be loaded", "use an adapter that was made")
    ),
    "adapter with a middle block that its config denies": Broken(
        several(other_adapter(use_motion_mid_block=True), config("motion_adapter", use_motion_mid_block=False)),
        ("motion_adapter does not fit its config.json", "has unexpected mid_block"),
    ),
    "adapter that wants an image": Broken(
        other_adapter(conv_in_channels=9), ("motion_adapter/config.json: conv_in_channels=9", "PIA")
    ),
    "adapter for more frames than memory": Broken(
        several(
            config("motion_adapter", motion_max_seq_length=10**12),
            weights("motion_adapter", lambda w: {k: v for k, v in w.items() if not k.endswith(".pe")}),
        ),
        ("motion_adapter/config.json: motion_max_seq_length=1000000000000",),
    ),
    "adapter for fewer frames": Broken(
        other_adapter(motion_max_seq_length=6), ("num_frames.max=8, but the motion adapter takes 6 frames",)
    ),
    "sizes that become smaller": Broken(
        lambda f: None, ("sizes has 30x33", "multiples of 4", "28x32 or 32x36"), entry={"sizes": ("32x32", "30x33")}
    ),
    "size below one latent": Broken(lambda f: None, ("sizes has 2x2", "write 4x4"), entry={"sizes": ("2x2",)}),
    "size with upscale": Broken(
        lambda f: None, ("sizes has 32x32", "multiples of 12"), entry={"sizes": ("32x32",), "upscale": 3}
    ),
    "sizes that the UNet halves unevenly": Broken(lambda f: None, entry={"sizes": ("20x12", "4x4")}),
    "LoRA of another architecture": Broken(
        lora({"unet.down_blocks.7.attentions.0.to_q.lora_A.weight": torch.zeros(2, 9)}),
        ("style.safetensors",),
        lines=LORA,
    ),
    "LoRA that is missing": Broken(lambda f: None, ("lacks lora", "style.safetensors is missing"), lines=LORA),
    "LoRA that is a pointer": Broken(write("style.safetensors", LFS), ("style.safetensors",), lines=LORA),
}

CASES: dict[str, Broken] = {**PLACES, **CONTENTS, **CLASSES, **WEIGHTS, **SHARDS, **TEXTS, **FITS, **SUMS}
