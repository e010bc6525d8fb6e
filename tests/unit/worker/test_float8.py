"""8-bit weights: refused where they cannot be before anything is loaded; how they round, where torchao is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sampler import InvalidSetting
from service.errors import ConfigurationError
from tests.tiny_wan import generation, save_wan, wan_entry
from worker.child.engine import Engine
from worker.child.fingerprint import weights_digest
from worker.networks.approximate import float8
from worker.networks.loading import load
from worker.networks.optimise.weight_memory import resident_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    entry = wan_entry(tmp_path, 'quantise = "float8"')  # without files
    with pytest.raises(ConfigurationError, match=r"quantise=float8 needs .* 8\.9 or more, and 'cpu' is none; delete"):
        load(entry, "cpu")


@pytest.mark.parametrize(
    ("capability", "installed", "said"),
    [((8, 6), True, "RTX has 8.6; delete quantise"), ((9, 0), False, "pip install 'ivmix\\[float8\\]'")],
)
def test_an_older_card_and_a_missing_library_are_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], installed: bool, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "RTX")
    monkeypatch.setattr(float8, "find_spec", lambda _name: object() if installed else None)
    with pytest.raises(ConfigurationError, match=said):
        float8.check_float8("m", "float8", GPU)


def test_a_card_that_can_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    monkeypatch.setattr(float8, "find_spec", lambda _name: object())
    float8.check_float8("m", "float8", GPU)


def test_a_job_of_other_weights_is_refused(tmp_path: Path) -> None:
    """The registry may have changed since; the video would say what is not so."""
    engine = Engine(save_wan(tmp_path), CPU)
    old = generation(engine.models.entry).model_copy(update={"quantise": "float8"})
    with pytest.raises(InvalidSetting, match=r"quantise=float8: .* now stored with quantise=None; send the request"):
        engine.sample(old)


def test_weights_of_the_blocks_take_half_and_the_answer_stays_near(tmp_path: Path) -> None:
    """On a CPU, which rounds the same and computes in the networks' own dtype. float8 itself needs a GPU."""
    pytest.importorskip("torchao", reason="the extra float8 is not installed")
    entry = save_wan(tmp_path, num_attention_heads=4, attention_head_dim=12, ffn_dim=64)
    engine = Engine(entry, CPU)
    (network,) = engine.models.transformers  # type: ignore[union-attr]
    expected, digest = engine.sample(generation(entry)).latents, weights_digest(engine.models)
    linear = [module for module in network.blocks.modules() if isinstance(module, torch.nn.Linear)]
    rest = resident_bytes(network) - sum(4 * each.weight.numel() for each in linear)
    float8.to_float8(network, "float8-weights", CPU)
    scales = sum(4 * each.out_features for each in linear)
    assert resident_bytes(network) == rest + scales + sum(each.weight.numel() for each in linear)
    assert type(network.proj_out.weight) is torch.nn.Parameter, "what is around the blocks is not rounded"
    assert weights_digest(engine.models) != digest
    found = engine.sample(generation(entry)).latents
    error: Any = (found - expected).square().mean() / expected.square().mean()
    assert 0 < error < 0.01, "three bits of mantissa: 1 part in 16 per weight"
