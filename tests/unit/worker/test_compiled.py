"""Compiled blocks on tiny networks of the three families: the same latents, and no clip fails where compiling does.

Most run the backend "eager", which only traces: code generation takes a minute per family.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor
from torch._dynamo.utils import counters

from sampler import ImageDenoiser
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Optimise
from tests.tiny_models import save_model
from tests.tiny_sparse_control import save_controlled
from tests.unit.worker.test_optimise import FAMILIES, FRAMES, NONE, clip, close, models_of, plain_latents, plainly
from worker.networks.models import Models
from worker.networks.optimise import BlockCompiler, OptimisedNetwork, TextKVCache
from worker.networks.optimise.compile_blocks import CompiledBlocks
from worker.networks.optimise.weight_memory import resident_bytes, shared_bytes
from worker.networks.sparse_control import FirstFrame

# torch's own modules still use what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

COMPILED = Optimise(compile=True, channels_last=True)
OTHER = "a blue square moving up on a black background"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a compiler sets for its process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "so that monkeypatch restores it")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch._dynamo.reset()
    counters.clear()
    names = ("recompile_limit", "accumulated_recompile_limit")
    with dynamo.patch({name: getattr(dynamo, name) for name in names}):
        yield
    torch._dynamo.reset()


# Tracing takes long: `make soak` compiles the other families.
COSTLY = [pytest.param(family, marks=() if family == "animatediff" else pytest.mark.slow) for family in FAMILIES]


@pytest.fixture(scope="module", params=COSTLY)
def entry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return save_model(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture
def animatediff(tmp_path: Path) -> ModelEntry:
    return save_model("animatediff", tmp_path / "model")


def compiled(entry: ModelEntry, compiler: BlockCompiler, optimise: Optimise = COMPILED) -> Models:
    models = models_of(entry, NONE)
    calls = [OptimisedNetwork(unet, optimise, models.text_kv_cache, compiler) for unet in unets(models)]
    return replace(models, optimised_image_unet=calls[0], optimised_video_unet=calls[1])


def unets(models: Models) -> tuple[Any, Any]:
    return models.image_unet, models.video_unet


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of compiling; the tiny models' schedules have others."""
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name == "ivmix.child"]
    return [message for message in found if "beta_schedule" not in message]


@pytest.mark.slow
def test_latents_are_those_of_the_plain_path(entry: ModelEntry, caplog: pytest.LogCaptureFixture) -> None:
    models = compiled(entry, BlockCompiler("eager"))
    found = clip(models)
    assert close(found, plain_latents(entry))
    assert not counters["graph_break"]  # blocks are compiled in one piece
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 10
    assert torch.equal(clip(models), found)
    assert close(clip(models, prompt=OTHER), plain_latents(entry, prompt=OTHER))
    assert counters["stats"]["unique_graphs"] == graphs  # another text is no reason to compile anew
    assert not warnings(caplog)


@pytest.mark.slow
def test_generated_code_gives_the_latents_of_the_plain_path(entry: ModelEntry, tmp_path: Path) -> None:
    models = compiled(entry, BlockCompiler(cache_dir=tmp_path))
    assert close(clip(models), plain_latents(entry))
    assert counters["inductor"]["fxgraph_cache_miss"] > 10


def one_level(layers: int = 1, down: str = "CrossAttnDownBlock2D") -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16,),
        layers_per_block=layers,
        down_block_types=(down,),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
    ).eval()


def frames(unet: Any) -> Tensor:
    texts = torch.randn(2, 1, 5, 8, generator=Generator().manual_seed(3))
    return guided(ImageDenoiser(unet, *texts))


@torch.no_grad()
def guided(model: ImageDenoiser) -> Tensor:
    return model(torch.randn(1, 4, FRAMES, 8, 8, generator=Generator().manual_seed(1)), 500, 0.5, 3.0)


def test_compiling_needs_no_other_optimisation_and_direct_callers_do_not_see_it() -> None:
    unet, alone = one_level(), NONE.model_copy(update={"compile": True})
    expected = frames(unet)
    assert close(frames(OptimisedNetwork(unet, alone, TextKVCache(), BlockCompiler("eager"))), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 2
    assert torch.equal(frames(unet), expected)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_generated_code_is_kept_for_the_next_process(tmp_path: Path) -> None:
    """A new process has nothing but the folder."""
    expected, cache = frames(one_level(down="DownBlock2D")), tmp_path / "cache"  # two graphs: each takes seconds
    for state in ("miss", "hit"):
        torch._dynamo.reset()
        counters.clear()
        unet = one_level(down="DownBlock2D")
        found = frames(OptimisedNetwork(unet, COMPILED, TextKVCache(), BlockCompiler(cache_dir=cache)))
        assert close(found, expected)
        assert {name for name in ("miss", "hit") if counters["inductor"][f"fxgraph_cache_{name}"]} == {state}
    assert any(cache.rglob("*"))


def test_blocks_of_one_shape_are_compiled_once_also_in_another_network() -> None:
    graphs, order = list[int](), list[int]()

    def noting(graph: Any, _inputs: Any) -> Callable[..., Any]:
        number = len(graphs)
        graphs.append(number)

        def run(*args: Any) -> Any:
            order.append(number)
            return graph.forward(*args)

        return run

    compiler = BlockCompiler(noting)
    for _ in ("image", "video"):
        unet = one_level(layers=2)
        expected = frames(unet)
        assert close(frames(OptimisedNetwork(unet, COMPILED, TextKVCache(), compiler)), expected)
    # two pairs of resnet and transformer, then three resnets with skip connections
    assert order == [0, 1, 0, 1, 2, 2, 2] * 2


@pytest.mark.slow
def test_low_memory_mode_compiles_its_smaller_calls() -> None:
    def answer(unet: Any) -> Tensor:
        texts = torch.randn(2, 1, 5, 8, generator=Generator().manual_seed(3))
        model = ImageDenoiser(unet, *texts)
        model.sequential_cfg, model.frames_at_once = True, 2
        return guided(model)

    expected = answer(one_level())
    found = answer(OptimisedNetwork(one_level(), COMPILED, TextKVCache(), BlockCompiler("aot_eager")))
    assert counters["stats"]["unique_graphs"] >= 6  # two frames, and the one that is left
    assert close(found, expected)


@pytest.mark.sample(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_blocks(family: str, tmp_path: Path) -> None:
    models = models_of(save_model(family, tmp_path / "model"), NONE)
    for unet in unets(models):
        found = [block for block, _ in CompiledBlocks(unet, BlockCompiler()).compiled]
        inside = {id(module) for block in found for module in block.modules()}
        assert len(inside) == sum(len(list(block.modules())) for block in found)  # none within another
        weights, covered = resident_bytes(unet), resident_bytes(*found)
        assert covered > 0.6 * weights


# -- where it does not work ------------------------------------------------------------------------------------------


def broken(_graph: Any, _inputs: Any) -> Callable[..., Any]:
    raise NotImplementedError("this operator is not known here")


def test_where_compiling_fails_the_clip_comes_out_right_with_one_warning(
    entry: ModelEntry, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = BlockCompiler(broken)
    optimise = COMPILED.model_copy(update={"channels_last": False})
    found = clip(compiled(entry, compiler, optimise))
    assert torch.equal(found, clip(compiled(entry, BlockCompiler(), Optimise())))
    assert compiler.has_failed
    (warning,) = warnings(caplog)
    assert "continuing without torch.compile" in warning
    assert "this operator is not known here" in warning


@pytest.mark.slow
def test_without_a_compiler_on_the_machine_the_clip_comes_out_right(
    animatediff: ModelEntry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        found = clip(compiled(animatediff, BlockCompiler(cache_dir=tmp_path / "cache")))
    assert close(found, plain_latents(animatediff))
    assert len(warnings(caplog)) == 1


def test_a_failure_long_after_the_first_call_is_survived_too() -> None:
    calls: list[int] = []

    def fails_later(graph: Any, _inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls.append(1)
            if len(calls) > 20:
                raise RuntimeError("the driver is gone")
            return graph.forward(*args)

        return run

    unet = one_level()
    expected, compiler = frames(unet), BlockCompiler(fails_later)
    network = OptimisedNetwork(unet, COMPILED, TextKVCache(), compiler)
    assert all(close(frames(network), expected) for _ in range(8))
    assert len(calls) == 21
    assert compiler.has_failed


def test_out_of_memory_is_left_to_the_engine(animatediff: ModelEntry) -> None:
    def hungry(_graph: Any, _inputs: Any) -> Callable[..., Any]:
        def run(*_args: Any) -> Any:
            raise torch.OutOfMemoryError("no memory")

        return run

    compiler = BlockCompiler(hungry)
    with pytest.raises(torch.OutOfMemoryError):
        clip(compiled(animatediff, compiler))
    assert not compiler.has_failed


# -- switches --------------------------------------------------------------------------------------------------------


def test_the_entry_switches_it_on_and_its_kernels_are_stored_in_the_data_folder(
    animatediff: ModelEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IVMIX_DATA_DIR", str(tmp_path / "data"))
    models_of(animatediff, Optimise())
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ  # off is the default
    models_of(animatediff, COMPILED)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "data" / "compiled")


@pytest.mark.slow  # imports torch's compiler in a new process
def test_kernels_go_to_the_given_folder_unless_the_operator_names_another(tmp_path: Path) -> None:
    """In a separate process. Bug: importing torch._dynamo sets the variable to torch's temporary folder, so that no
    worker used the given one."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    program = (
        "import os, pathlib, sys; import torch._dynamo; from worker.networks.optimise import BlockCompiler; "
        "given, own = sys.argv[1:]; BlockCompiler(cache_dir=pathlib.Path(given)); "
        "from torch._inductor.codecache import FxGraphCache; print(FxGraphCache._get_tmp_dir()); "
        "os.environ['TORCHINDUCTOR_CACHE_DIR'] = own; BlockCompiler(cache_dir=pathlib.Path(given)); "
        "print(FxGraphCache._get_tmp_dir())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "given"), str(tmp_path / "own")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.split() == [str(tmp_path / name / "fxgraph") for name in ("given", "own")]


def test_a_folder_that_cannot_be_made_is_no_reason_not_to_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    BlockCompiler(cache_dir=tmp_path / "file" / "compiled")
    assert "not kept" in warnings(caplog)[0]
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_channels_last_keeps_weights_and_their_sharing(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "worker.networks.loading.MAX_TUNED_PIXELS", 0
    )  # else the CPU's own preparation has done it already
    plain = models_of(entry, NONE)
    models = models_of(entry, NONE.model_copy(update={"channels_last": True}))
    shared = shared_bytes(*unets(plain))
    for unet in unets(models):
        kernels = [p for p in unet.parameters() if p.ndim == 4 and p.shape[-1] > 1]
        assert kernels
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert shared_bytes(*unets(models)) == shared
    assert models.weights_bytes == plain.weights_bytes
    assert close(clip(models), plainly(plain))


@pytest.mark.slow
def test_sparsectrl_is_compiled_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models, compiler = models_of(save_controlled(tmp_path / "model"), NONE), BlockCompiler("eager")
    calls = [OptimisedNetwork(unet, COMPILED, models.text_kv_cache, compiler) for unet in models.unets[1:]]
    found = replace(models, optimised_video_unet=calls[0], optimised_sparse_control=calls[1])
    kept, x = FirstFrame(torch.ones(1, 4, 1, 8, 8)), torch.randn(1, 4, FRAMES, 8, 8)
    with torch.no_grad():
        expected, answer = (each.denoisers(OTHER, first_frame=kept)[1](x, 500, 0.5, 3.0) for each in (models, found))
    assert close(answer, expected)
    assert not warnings(caplog)
    blocks = calls[1]._blocks
    assert blocks is not None
    assert blocks.compiled
    assert counters["stats"]["unique_graphs"]
