"""What the families with UNets and CogVideoX need of a card: the formulas against counts on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from diffusers.models.modeling_utils import no_init_weights
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from benchmarks.meta_memory import peak_bytes
from service.catalog.activations import CogVideoXFootprint, UNetFootprint
from service.catalog.footprint import check_fits, default_need, footprint_of
from service.catalog.memory_options import MemoryOptions
from service.catalog.model_entry import ModelEntry
from service.catalog.registry import ModelRegistry
from service.catalog.released_networks import RELEASED
from service.errors import ConfigurationError
from service.jobs.context_windows import ContextWindows
from tests.tiny_models import save_model
from worker.models import load
from worker.networks.context_windows import WindowedMotion
from worker.networks.network_classes import errors_only
from worker.networks.videocrafter_unet import VideoCrafterUNet

KNOWN = ModelRegistry.load().known
LOW = MemoryOptions(halves_apart=True)
SD = {"cross_attention_dim": 768}
XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
BUILD: dict[str, Callable[[], Any]] = {
    "sd-unet": lambda: UNet2DConditionModel(**SD),
    "sdxl-unet": lambda: UNet2DConditionModel(**XL),
    "modelscope-unet": lambda: UNet3DConditionModel(),
    "videocrafter-unet": lambda: VideoCrafterUNet(),
    "sd-motion": lambda: MotionAdapter(use_motion_mid_block=False),
    "sdxl-motion": lambda: MotionAdapter(block_out_channels=(320, 640, 1280), use_motion_mid_block=False),
    "sparsectrl": lambda: SparseControlNetModel(conditioning_channels=4, cross_attention_dim=768),
    "sd-vae": lambda: AutoencoderKL(**VAE),
    "clip-l": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)),
    "clip-h": lambda: CLIPTextModel(CLIPTextConfig(**CLIP_H)),
    "clip-g": lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
    "t5-xxl": lambda: T5EncoderModel(T5Config(**T5, vocab_size=32128)),
    "umt5-xxl": lambda: UMT5EncoderModel(UMT5Config(**T5, vocab_size=256384)),
    "wan-vae": AutoencoderKLWan,
    "wan-1.3b": lambda: WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    "wan-14b": WanTransformer3DModel,
    "cogvideox-vae": AutoencoderKLCogVideoX,
    "cogvideox-2b": CogVideoXTransformer3DModel,
}
VIDEO = {
    "animatediff": lambda: UNetMotionModel.from_unet2d(built("sd-unet"), built("sd-motion")),
    "animatediff-sdxl": lambda: UNetMotionModel.from_unet2d(built("sdxl-unet"), built("sdxl-motion")),
    "modelscope": lambda: built("modelscope-unet"),
    "videocrafter": lambda: built("videocrafter-unet"),
}
WIDTH, HEIGHT, FRAMES = 640, 384, 8
slow = pytest.mark.slow


@cache
def built(name: str) -> Any:
    """On the meta device, in half precision."""
    with errors_only("diffusers"), torch.device("meta"), no_init_weights():
        made = (BUILD | VIDEO)[name]()
    return made.to(torch.float16).eval().requires_grad_(False)


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def given(network: Any, rows: int, texts: int) -> dict[str, Any]:
    config = network.config
    found: dict[str, Any] = {
        "timestep": torch.zeros((), dtype=torch.int64, device="meta"),
        "encoder_hidden_states": empty(texts, 77, config.cross_attention_dim),
    }
    if getattr(config, "addition_embed_type", None):
        found["added_cond_kwargs"] = {"text_embeds": empty(rows, 1280), "time_ids": empty(rows, 6)}
    return found | ({"fps": 8} if isinstance(network, VideoCrafterUNet) else {})


def footprint(name: str) -> UNetFootprint:
    found = footprint_of(KNOWN[name])
    assert isinstance(found, UNetFootprint)
    return found


@pytest.mark.parametrize("name", ["clip-l", *(pytest.param(name, marks=slow) for name in BUILD if name != "clip-l")])
def test_released_networks_have_as_many_numbers_as_their_configs_say(name: str) -> None:
    with errors_only("diffusers"), torch.device("meta"), no_init_weights():
        network = BUILD[name]()
    assert RELEASED[name][0] == sum(x.numel() for x in network.parameters())
    assert RELEASED.keys() == BUILD.keys()


@pytest.mark.parametrize(
    ("name", "halves"),
    [
        pytest.param("animatediff", 1, marks=slow),
        *(
            pytest.param(name, 2, marks=slow)
            for name in ("animatediff", "animatediff-sdxl", "modelscope", "videocrafter2")
        ),
    ],
)
def test_activations_of_the_video_unet_are_those_counted_on_the_meta_device(name: str, halves: int) -> None:
    found = footprint(name)
    network = built(found.family)
    x = empty(halves, 4, FRAMES, HEIGHT // 8, WIDTH // 8)
    texts = halves * FRAMES if isinstance(network, UNetMotionModel) else halves
    counted = peak_bytes(lambda: network(x, **given(network, halves, texts)))
    assert found.video_bytes(WIDTH, HEIGHT, FRAMES, halves=halves) == pytest.approx(counted, rel=0.04)


@pytest.mark.parametrize(
    ("name", "frames"),
    [("animatediff", 1), *(pytest.param(n, 8, marks=slow) for n in ("animatediff", "animatediff-sdxl"))],
)
def test_activations_of_the_image_unet_are_those_counted_on_the_meta_device(name: str, frames: int) -> None:
    found, network = footprint(name), built("sdxl-unet" if name.endswith("sdxl") else "sd-unet")
    x = empty(2 * frames, 4, HEIGHT // 8, WIDTH // 8)
    counted = peak_bytes(lambda: network(x, **given(network, 2 * frames, 2 * frames)))
    assert found.image_bytes(WIDTH, HEIGHT, frames, halves=2) == pytest.approx(counted, rel=0.04)


@slow
def test_context_windows_need_no_more_than_the_whole_clip_at_once() -> None:
    network, windows = built("animatediff"), ContextWindows(length=8, stride=4)
    x = empty(1, 4, 24, HEIGHT // 8, WIDTH // 8)

    def call() -> None:
        with WindowedMotion(network).active(windows, 24):
            network(x, **given(network, 1, 24))

    counted = peak_bytes(call)
    assert footprint("animatediff").video_bytes(WIDTH, HEIGHT, 24, halves=1) == pytest.approx(counted, rel=0.04)


@slow
def test_what_sparsectrl_adds_is_counted() -> None:
    found, network = footprint("animatediff-sparsectrl"), built("sparsectrl")
    x = empty(2, 4, FRAMES, HEIGHT // 8, WIDTH // 8)
    mask = empty(1, 1, FRAMES, HEIGHT // 8, WIDTH // 8)
    down, middle = network(
        x,
        controlnet_cond=empty(1, 4, *x.shape[2:]),
        conditioning_mask=mask,
        return_dict=False,
        **given(network, 2, 2 * FRAMES),
    )
    assert found.residual_bytes(WIDTH, HEIGHT, FRAMES, halves=2) == sum(y.nbytes for y in (*down, middle))
    plain = footprint("animatediff").needed(512, 512, 16, MemoryOptions())
    assert found.needed(512, 512, 16, MemoryOptions()) - plain > found.weights["sparse_control"]
    assert (
        found.needed(512, 512, 16, LOW) - footprint("animatediff").needed(512, 512, 16, LOW)
        == found.weights["sparse_control"]
    )


@slow
@pytest.mark.parametrize(("halves", "frames"), [(2, 49), (1, 9)])
def test_cogvideox_is_counted_too(halves: int, frames: int) -> None:
    found = footprint_of(KNOWN["cogvideox-2b"])
    assert isinstance(found, CogVideoXFootprint)
    network, vae, count = built("cogvideox-2b"), built("cogvideox-vae"), 1 + frames // 4
    x, text = empty(halves, count, 16, 60, 90), empty(halves, 226, 4096)
    time = torch.zeros(halves, dtype=torch.int64, device="meta")
    counted = peak_bytes(lambda: network(x, text, time, return_dict=False))
    assert found.network_bytes(720, 480, frames, halves=halves) == pytest.approx(counted, rel=0.02)
    for tiled in (False, True):
        vae.use_tiling = tiled
        counted = peak_bytes(lambda: vae.decode(empty(1, 16, count, 60, 90), return_dict=False))
        assert found.decoder_bytes(720, 480, frames, tiled=tiled) == pytest.approx(counted, rel=0.04)
    vae.use_tiling = False


@slow
def test_activations_of_decoding_a_picture_are_those_counted_on_the_meta_device() -> None:
    found, vae = footprint("animatediff"), built("sd-vae")
    counted = peak_bytes(lambda: vae.decode(empty(1, 4, HEIGHT // 8, WIDTH // 8)).sample)
    assert found.decoder_bytes(WIDTH, HEIGHT, 1) == pytest.approx(counted, rel=0.02)


def test_every_shipped_entry_has_a_figure_without_its_files() -> None:
    assert {name for name, entry in KNOWN.items() if default_need(entry) is None} == set()
    sd, xl = (default_need(KNOWN[name]) or 0 for name in ("animatediff", "animatediff-sdxl"))
    assert 5e9 < sd < xl < 40e9


def test_weights_are_those_of_the_files(tmp_path: Path) -> None:
    entry = save_model("animatediff", tmp_path).model_copy(update={"dtype": "float32"})
    found, loaded = footprint_of(entry), load(entry, "cpu")
    assert found is not None
    assert sum(found.weights.values()) == pytest.approx(loaded.weights_bytes, rel=0.01)
    half = footprint_of(entry.model_copy(update={"dtype": "float16"}))
    assert half is not None
    assert half.weights["unet"] == found.weights["unet"] // 2
    assert half.weights["vae"] == found.weights["vae"], "its config has force_upcast"


def test_a_model_that_runs_in_low_memory_mode_is_not_refused() -> None:
    entry, found = KNOWN["animatediff-sparsectrl"], footprint("animatediff-sparsectrl")
    needs = found.needed(512, 512, 16, LOW)
    assert needs < (default_need(entry) or 0)
    check_fits(entry, needs)
    with pytest.raises(
        ConfigurationError, match=r"512x512 and 16 frames, even in low-memory .* What fits: .*num_frames.default = 8"
    ):
        check_fits(entry, needs - 1)
    with pytest.raises(ConfigurationError, match="No setting makes it fit: the least is "):
        check_fits(entry, 10**9)
    with pytest.raises(ConfigurationError) as raised:
        check_fits(entry, needs - 1)
    assert "group_offload" not in str(raised.value)


@slow
def test_wider_and_longer_clips_need_more() -> None:
    found = footprint("modelscope")
    sizes = [found.needed(*clip, MemoryOptions()) for clip in ((256, 256, 16), (512, 512, 16), (512, 512, 24))]
    assert sizes == sorted(set(sizes))


def test_a_worker_refuses_at_its_start_what_cannot_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = save_model("modelscope", tmp_path)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1, 2))
    with pytest.raises(ConfigurationError, match=r"needs .* GB of the card for its default clip"):
        load(entry, "cuda")


def test_families_with_unets_have_no_switches_of_memory() -> None:
    raw = KNOWN["demo"].model_dump()
    assert ModelEntry.model_validate(raw).memory == MemoryOptions()
    with pytest.raises(ValueError, match="memory has no settings for families with UNets"):
        ModelEntry.model_validate(raw | {"memory": {"group_offload": True}})
