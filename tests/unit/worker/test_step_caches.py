"""Step caches in whole runs: resumed runs, whole calls that are counted, and nothing left behind for the next job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sampler import InvalidSetting
from service.jobs.model import Generation
from tests.factories import make_generation, make_job
from tests.tiny_wan import generation as wan_generation
from tests.tiny_wan import save_wan, wan_entry
from tests.unit.worker.test_child_main import at_call, outcome, running
from tests.unit.worker.test_cogvideox import generation as cog_generation
from tests.unit.worker.test_cogvideox import save as save_cogvideox
from tests.unit.worker.test_low_memory import room_for
from tests.unit.worker.test_wan import at_call as at_transformer_call
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.messages import Done, Progress, Report, Stop, Stopped
from worker.networks.caching import caching

FRAMES = 2
CPU = torch.device("cpu")
BOTH_HALVES = {"combination": "IV-IV", "image_guidance": [4, 4], "video_guidance": [4, 4]}
DEEP = {"name": "deep-cache"}
ALL_EXACT = {"name": "first-block", "threshold": 1e-12}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(save_wan(tmp_path_factory.mktemp("wan"), num_layers=4), CPU)


@pytest.fixture(scope="module")
def cogvideox(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(save_cogvideox(tmp_path_factory.mktemp("cog"), num_layers=4), CPU)


def mixed(cache: dict[str, Any] | None = None, steps: int = 4, **others: Any) -> Generation:
    return make_generation(
        num_frames=FRAMES, num_inference_steps=steps, **{"sampler": BOTH_HALVES, "cache": cache, **others}
    )


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[nn.Module]]:
    """Yields a list that gets each of these modules at each of its calls."""
    calls: list[nn.Module] = []
    hooks = [module.register_forward_hook(lambda module, *_: calls.append(module)) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("cache", "whole"),
    # 3 zig-zags of 3 video and 2 image calls; the last step calls the video network alone
    [
        (None, (10, 6)),
        (DEEP, (4, 3)),
        ({**DEEP, "interval": 2}, (7, 3)),
        ({**DEEP, "steps": 2}, (2, 2)),
        ({**DEEP, "steps": 4}, (1, 1)),
    ],
)
def test_each_network_has_one_whole_call_in_the_steps_that_share_it(
    engine: Engine, cache: dict[str, Any] | None, whole: tuple[int, int]
) -> None:
    video, image = (unet.mid_block.resnets[0] for unet in (engine.models.video_unet, engine.models.image_unet))
    wanted = mixed(cache)
    assert wanted.network_calls == {"image": 6, "video": 10}
    with counted(video, image) as calls:
        engine.sample(wanted)
    assert (calls.count(video), calls.count(image)) == whole


@pytest.mark.parametrize(
    ("cache", "sampler", "resumable"),
    [
        (DEEP, BOTH_HALVES, [1, 2, 3, 4]),
        ({**DEEP, "steps": 3}, BOTH_HALVES, [3, 4]),
        ({**DEEP, "steps": 2}, {"name": "freeinit", "iterations": 2}, [2, 4, 6, 8]),
    ],
    ids=["each step", "three steps", "freeinit"],
)
def test_run_resumes_where_its_cache_is_empty_and_gives_the_same_bytes(
    engine: Engine, tmp_path: Path, cache: dict[str, Any], sampler: dict[str, Any], resumable: list[int]
) -> None:
    wanted, states = mixed(cache, sampler=sampler), list[Checkpoint]()
    expected = engine.sample(wanted, on_step=states.append).latents
    assert [state.step for state in states] == resumable
    resume = tmp_path / "checkpoint"
    for state in states[:-1]:
        state.write(resume)
        assert torch.equal(engine.sample(wanted, resume=resume).latents, expected)


def test_checkpoint_of_another_cache_is_not_used(engine: Engine, tmp_path: Path) -> None:
    states: list[Checkpoint] = []
    engine.sample(mixed(), on_step=states.append)
    states[1].write(tmp_path / "checkpoint")
    again: list[Checkpoint] = []
    engine.sample(mixed(DEEP), on_step=again.append, resume=tmp_path / "checkpoint")
    assert [state.step for state in again] == [1, 2, 3, 4]


def test_freeinit_begins_every_run_with_whole_calls(engine: Engine) -> None:
    sampler = {"name": "freeinit", "iterations": 2}
    with counted(engine.models.video_unet.mid_block.resnets[0]) as calls:
        engine.sample(mixed({**DEEP, "steps": 2}, steps=3, sampler=sampler))
    assert len(calls) == 4, "steps 1 and 3 of both runs"


def test_next_job_is_exact_also_after_one_that_was_stopped(engine: Engine) -> None:
    class Enough(Exception):
        pass

    def stop(_phase: object, step: int, _total: int) -> None:
        if step == 2:
            raise Enough

    expected = engine.sample(mixed()).latents
    with pytest.raises(Enough):
        engine.sample(mixed({**DEEP, "steps": 4}), stop)
    assert torch.equal(engine.sample(mixed()).latents, expected)


def test_low_memory_mode_computes_every_call(engine: Engine) -> None:
    wanted = mixed({**DEEP, "steps": 4}, steps=2)
    with room_for(engine.models.video_unet, FRAMES), counted(engine.models.video_unet.mid_block.resnets[0]) as calls:
        found = engine.sample(wanted)
    assert found.low_memory
    assert len(calls) == 2 * wanted.network_calls["video"], "both halves of guidance by themselves"


def drained(
    engine: Engine, wanted: Generation, folder: Path, call: int, at: Callable[..., Any]
) -> tuple[Report, Report, list[int]]:
    """Last reports of a job that runs undisturbed, and of the same one that is stopped at this call of its network and
    goes on in the next child; and the steps that the latter reports."""
    job = make_job(generation=wanted)
    with running(engine, folder / "undisturbed") as child:
        undisturbed, _ = child.run(job)
    with running(engine, folder / "data") as child:
        with child.job(job) as pipe, at(engine, call, lambda: pipe.send(Stop(save_checkpoint=True))):
            assert outcome(pipe)[0] == Stopped()
        resumed, reports = child.run(job, may_resume=True)
    return undisturbed, resumed, [report.step for report in reports if isinstance(report, Progress) and report.step]


def test_drained_job_goes_on_from_its_last_whole_call(engine: Engine, tmp_path: Path) -> None:
    wanted = mixed({**DEEP, "steps": 3}, steps=7, sampler={"name": "ddim"})
    undisturbed, resumed, steps = drained(engine, wanted, tmp_path, 5, at_call)
    assert isinstance(undisturbed, Done)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    assert min(steps) == 3


def test_drained_job_with_a_cache_over_all_steps_starts_again(wan: Engine, tmp_path: Path) -> None:
    wanted = wan_generation(wan.models.entry, cache={"name": "first-block", "threshold": 0.5}, num_inference_steps=6)
    undisturbed, resumed, steps = drained(wan, wanted, tmp_path, 4, at_transformer_call)
    assert isinstance(undisturbed, Done)
    assert isinstance(resumed, Done)
    assert resumed.output.sha256 == undisturbed.output.sha256
    assert min(steps) == 1


def transformer_run(engine: Engine, **fields: Any) -> tuple[Tensor, int]:
    """Latents, and how often the last block was computed."""
    resolved = (wan_generation if engine.models.entry.family == "wan" else cog_generation)(
        engine.models.entry, **{"num_inference_steps": 12, **fields}
    )
    (network,) = engine.models.transformers  # type: ignore[union-attr]
    blocks = network.blocks if hasattr(network, "blocks") else network.transformer_blocks
    with counted(blocks[-1].attn1) as calls:
        return engine.sample(resolved).latents, len(calls)


SAMPLERS = [
    ("wan", {"name": "ddim"}),
    ("wan", {"name": "iv-mixed"}),
    ("wan", {"name": "fused", "image_frames": "first"}),
    ("cogvideox", {"name": "ddim"}),
]


@pytest.mark.parametrize(("family", "sampler"), SAMPLERS, ids=str)
def test_first_block_skips_calls_above_its_threshold_and_is_exact_below(
    request: pytest.FixtureRequest, family: str, sampler: dict[str, Any]
) -> None:
    engine: Engine = request.getfixturevalue(family)
    plain, calls = transformer_run(engine, sampler=sampler)
    found, computed = transformer_run(engine, sampler=sampler, cache=ALL_EXACT)
    assert torch.equal(found, plain)
    assert computed == calls
    found, computed = transformer_run(engine, sampler=sampler, cache={"name": "first-block", "threshold": 0.5})
    assert 1 <= computed < calls
    assert 0 < (found - plain).square().mean() < plain.square().mean()
    assert torch.equal(transformer_run(engine, sampler=sampler)[0], plain), "the next job is exact"


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_taylorseer_computes_its_first_steps_and_every_nth(request: pytest.FixtureRequest, family: str) -> None:
    engine: Engine = request.getfixturevalue(family)
    plain, calls = transformer_run(engine)
    found, computed = transformer_run(engine, cache={"name": "taylorseer", "interval": 3})
    assert (calls, computed) == (12, 6), "steps 1, 2, 3, 5, 8 and 11"
    assert 0 < (found - plain).square().mean() < plain.square().mean()


@pytest.mark.parametrize("memory", ["halves_apart = true", "halves_apart = false"])
def test_halves_of_guidance_keep_what_is_theirs(tmp_path: Path, memory: str) -> None:
    """By themselves, each half has its own."""
    save_wan(tmp_path, num_layers=4)
    engine = Engine(wan_entry(tmp_path, f"memory = {{ {memory} }}"), CPU)
    halves = 1 + (memory == "halves_apart = true")
    found, computed = transformer_run(engine, cache={"name": "taylorseer", "interval": 3})
    assert computed == 6 * halves
    assert found.isfinite().all()


def test_worker_refuses_a_cache_that_its_networks_do_not_have(engine: Engine, wan: Engine) -> None:
    """The record of a job may be older than the registry."""
    with (
        pytest.raises(InvalidSetting, match="family animatediff has no such cache"),
        caching(engine.models, mixed({"name": "first-block"})),
    ):
        pass
    old = wan_generation(wan.models.entry).model_copy(update={"cache": mixed(DEEP).cache})
    with pytest.raises(InvalidSetting, match="family wan has no such cache"):
        wan.sample(old)
