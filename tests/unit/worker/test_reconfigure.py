"""Networks that are loaded switch to other optimisations and back: the latents stay, up to rounding, then bitwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from service.errors import ConfigurationError
from tests.tiny_models import save_model
from tests.tiny_wan import LATENTS, TRANSFORMER
from tests.unit.worker.test_optimise import clip, close
from worker.networks.loading import load
from worker.networks.models import Models
from worker.networks.optimise import BlockCompiler
from worker.networks.optimise.attention_backend import AttentionSwitch
from worker.networks.reconfigure import reconfigured
from worker.networks.video_transformers.network import VideoTransformer


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return save_model("animatediff", tmp_path_factory.mktemp("switched") / "model")


@pytest.fixture(scope="module")
def models(entry: ModelEntry) -> Models:
    """One latent is too large for `cpu_tuning`, so that attention is torch's, as on a GPU."""
    found = load(entry.model_copy(update={"sizes": ("1024x1024",)}), "cpu")
    assert isinstance(found, Models)
    return found


def strides(models: Models) -> list[Any]:
    return [parameter.stride() for network in models.unets for parameter in network.parameters()]


@pytest.mark.parametrize(
    ("name", "value"),
    [("channels_last", True), ("guidance_halves", "apart"), ("attention_backend", "_native_math")],
)
def test_switch_changes_the_rounding_only_and_is_undone(models: Models, name: str, value: object) -> None:
    before, layout = clip(models), strides(models)
    switched, _ = reconfigured(models, Optimise.model_validate({name: value}))
    assert isinstance(switched, Models)
    found, effects = clip(switched), [strides(models) != layout, switched.denoisers("")[0].sequential_cfg]
    assert close(found, before)
    assert effects == [name == "channels_last", name == "guidance_halves"]
    if name == "attention_backend":
        assert not torch.equal(found, before)
    back, _ = reconfigured(switched, Optimise())
    assert isinstance(back, Models)
    assert torch.equal(clip(back), before)
    assert strides(models) == layout


@pytest.mark.slow
def test_compiled_blocks_are_switched_on_and_off(models: Models) -> None:
    before, optimise = clip(models), Optimise(compile=True)
    compiler = BlockCompiler("eager")
    for network in models.optimised_networks:
        network.use(optimise, compiler)
    assert close(clip(replace(models, optimise=optimise)), before)
    assert not compiler.problem
    back, _ = reconfigured(models, Optimise())
    assert isinstance(back, Models)
    assert torch.equal(clip(back), before)


def test_wan_takes_backends_through_the_dispatcher_of_diffusers() -> None:
    transformer = WanTransformer3DModel(**TRANSFORMER).eval()
    assert AttentionSwitch(transformer).has_dispatcher
    network = VideoTransformer(transformer)
    x, text = torch.randn(LATENTS), (torch.randn(1, 5, 16),)
    before = _called(network, x, text)
    network.use(Optimise(attention_backend="_native_math"))
    found = _called(network, x, text)
    assert close(found, before)
    assert not torch.equal(found, before)
    network.use(Optimise())
    assert torch.equal(_called(network, x, text), before)
    with pytest.raises(ConfigurationError, match=r"optimise.attention_backend=flash cannot be used here: .*flash"):
        network.use(Optimise(attention_backend="flash"))
    assert torch.equal(_called(network, x, text), before)


@torch.no_grad()
def _called(network: Any, x: torch.Tensor, text: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return network(x, 500.0, encoder_hidden_states=text)


def test_backend_of_a_package_is_refused_where_the_network_does_not_ask_the_dispatcher(models: Models) -> None:
    with pytest.raises(ConfigurationError, match="attention_backend=flash: UNet2DConditionModel has none of this name"):
        reconfigured(models, Optimise(attention_backend="flash"))
