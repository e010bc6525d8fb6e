"""What Wan needs of a card: the formulas against a count on the meta device, and what a worker refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.modeling_utils import no_init_weights

from benchmarks.meta_memory import peak_bytes
from service.catalog.activations import WanFootprint
from service.catalog.footprint import check_fits, default_need, footprint_of
from service.catalog.memory_options import MemoryOptions
from service.catalog.registry import ModelRegistry
from service.catalog.weight_files import Source
from service.errors import ConfigurationError
from service.settings import Settings
from tests.tiny_wan import assert_close, generation, save_wan, wan_entry
from worker.child.engine import Engine
from worker.child.load_failures import OUT_OF_MEMORY, cannot_load
from worker.networks.stored_form import cast
from worker.networks.video_transformers import assembly

# Wan 2.1 1.3B and 14B, Wan 2.2 5B: heads, width of the feed-forward layer, latent channels.
SIZES = {"1.3B": (12, 8960, 16), "14B": (40, 13824, 16), "5B": (24, 14336, 48)}
ALL = MemoryOptions(halves_apart=True, tiling=True, group_offload=True)


def of_size(name: str) -> tuple[WanFootprint, Any]:
    heads, ffn, channels = SIZES[name]
    settings: dict[str, Any] = {"num_attention_heads": heads, "ffn_dim": ffn, "num_layers": 1}
    with torch.device("meta"), no_init_weights():
        network = WanTransformer3DModel(**settings, in_channels=channels, out_channels=channels)
    cast(network, torch.bfloat16)
    config = {**settings, "attention_head_dim": 128, "patch_size": [1, 2, 2]}
    return WanFootprint({"transformer": 0, "vae": 0}, config, {"base_dim": 96}, 4), network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("halves", [1, 2])
def test_activations_of_the_transformer_are_those_counted_on_the_meta_device(name: str, halves: int) -> None:
    footprint, network = of_size(name)
    x = torch.empty(halves, network.config.in_channels, 21, 60, 104, dtype=torch.bfloat16, device="meta")
    text = torch.empty(halves, 512, 4096, dtype=torch.bfloat16, device="meta")
    counted = peak_bytes(lambda: network(x, torch.empty(halves, device="meta"), text, return_dict=False))
    assert footprint.network_bytes(832, 480, 81, halves=halves) == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
def test_activations_of_decoding_are_those_counted_on_the_meta_device() -> None:
    footprint, _ = of_size("1.3B")
    with torch.device("meta"), no_init_weights():
        vae = AutoencoderKLWan().eval().requires_grad_(False)
    latents = torch.empty(1, 16, 3, 32, 48, device="meta")
    counted = peak_bytes(lambda: vae.decode(latents, return_dict=False))
    assert footprint.decoder_bytes(384, 256, 9, tiled=False) == pytest.approx(counted, rel=0.05)
    assert footprint.decoder_bytes(384, 256, 9, tiled=True) < counted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    return folder


def test_weights_are_those_of_the_loaded_networks(folder: Path) -> None:
    entry = wan_entry(folder, 'dtype = "float32"')
    found, engine = footprint_of(entry), Engine(entry, torch.device("cpu"))
    assert found is not None
    names = ("text_encoder", "vae", "transformer")
    for name, network in zip(names, engine.models.networks, strict=True):  # type: ignore[union-attr]
        stored = {id(x): 4 * x.numel() for x in network.parameters()}
        assert found.weights[name] == sum(stored.values())
    half = footprint_of(wan_entry(folder))
    assert half is not None
    assert {name: 2 * size for name, size in half.weights.items()} == found.weights


def test_settings_that_save_memory_need_less() -> None:
    found = replace(of_size("14B")[0], weights={"transformer": 28 * 10**9, "text_encoder": 10**9, "vae": 5 * 10**8})
    found.transformer["num_layers"] = 40
    clip = (832, 480, 81)
    needs = [found.needed(*clip, memory) for memory in (MemoryOptions(), MemoryOptions(tiling=True), ALL)]
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) == 3


def test_worker_refuses_at_its_start_what_cannot_fit_and_names_what_would(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = wan_entry(folder).model_copy(update={"sizes": ("832x480", "256x256")})
    found = footprint_of(entry)
    assert found is not None
    low = found.needed(832, 480, 9, MemoryOptions(halves_apart=True, tiling=True))
    small = found.needed(256, 256, 9, MemoryOptions(halves_apart=True, tiling=True))
    check_fits(entry, low)
    with pytest.raises(ConfigurationError, match=r"832x480 and 9 frames.* What fits: .*256x256 as the first size"):
        check_fits(entry, max(small, low - 1))
    with pytest.raises(
        ConfigurationError,
        match=r"0\.0 GB are free: end other programs on the card\. No setting makes it fit: the least is",
    ):
        check_fits(entry, 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1, 2))
    with pytest.raises(ConfigurationError, match=r"needs .* of the card for .*; the card has 0\.0 GB\. No"):
        assembly.load_transformer(entry, torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1, low))
    with pytest.raises(torch.OutOfMemoryError, match=r"; 0\.0 GB are free: end other programs"):
        assembly.load_transformer(entry, torch.device("cuda"), torch.bfloat16)


def test_a_card_that_others_fill_may_be_free_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker tries again, and the model's videos wait meanwhile."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1, 2**40))
    with pytest.raises(torch.OutOfMemoryError, match=r"needs .* GB of the card") as raised:
        assembly.load_transformer(wan_entry(folder), torch.device("cuda"), torch.bfloat16)
    failure = cannot_load(raised.value, Settings(data_dir=folder))
    assert (failure.is_final, failure.shown) == (False, OUT_OF_MEMORY)


def test_unknown_network_whose_files_are_not_here_has_no_figure(folder: Path) -> None:
    entry = ModelRegistry.load().entry("wan-1.3b")
    other = entry.components["transformer"].model_copy(update={"source": Source(repo="owner/other")})
    assert default_need(entry.model_copy(update={"components": entry.components | {"transformer": other}})) is None
    assert (default_need(wan_entry(folder)) or 0) > 0


def test_group_offload_is_the_same_clip(folder: Path) -> None:
    plain = Engine(wan_entry(folder), torch.device("cpu"))
    offloaded = Engine(wan_entry(folder, "memory = { group_offload = true }"), torch.device("cpu"))
    made = [engine.sample(generation(engine.models.entry)).latents for engine in (plain, offloaded)]
    assert_close(made[1], made[0])
    assert offloaded.models.network.transformer._diffusers_hook is not None  # type: ignore[union-attr]
