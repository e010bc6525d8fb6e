"""What goes wrong silently where code for betas meets a flow; tests/unit/sampler/test_flow_*.py has more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from sampler import FlowSchedule, ddim_plan
from service.errors import InvalidParameter
from service.jobs.timestep_spacing import FlowSpacing
from tests.tiny_wan import SHIFT, STEPS, TRANSFORMER, generation, noise, save_wan, use_euler, wan_entry
from worker.child.engine import Engine
from worker.networks.video_transformers.network import VideoTransformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    use_euler(folder)
    return folder


def test_a_job_runs_on_the_levels_of_its_record(folder: Path) -> None:
    """The worker replaces the spacing of a schedule, which of a flow is its shift."""
    engine = Engine(wan_entry(folder), torch.device("cpu"))
    schedule = engine.models.video_schedule
    assert isinstance(schedule, FlowSchedule)
    for shift, lines in ((SHIFT, ""), (7.0, "flow_shift = 7")):
        job = generation(wan_entry(folder, lines))
        assert job.spacing == FlowSpacing(shift=shift)
        assert engine.plan(job) == ddim_plan(replace(schedule, shift=shift), STEPS, guidance=5.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_time_is_float32_with_its_fraction_in_networks_of_half_precision(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def call(_network: object, x: Tensor, time: Tensor, _text: Tensor) -> Tensor:
        seen.append(time)
        return x

    network = VideoTransformer(WanTransformer3DModel(**TRANSFORMER).to(dtype), call=call)
    network(noise().to(dtype), 996.53, encoder_hidden_states=(torch.ones(1, 2, 16, dtype=dtype),) * 2)
    assert seen[0].dtype is torch.float32
    assert seen[0].tolist() == pytest.approx([996.53])


@pytest.mark.parametrize("sampler", [{"name": "iv-mixed"}, {"name": "fused"}])
def test_distilled_models_have_no_answer_without_the_prompt_and_are_not_mixed(
    folder: Path, sampler: dict[str, str]
) -> None:
    entry = wan_entry(folder, "distilled = true")
    assert (entry.samplers, entry.experimental) == (("ddim",), ())
    assert not generation(entry).is_experimental
    with pytest.raises(InvalidParameter, match="does not work with the distilled model 'tiny' of family wan; use ddim"):
        generation(entry, sampler=sampler)
    with pytest.raises(InvalidParameter, match="'apg' needs guidance"):
        generation(entry, sampler={"guidance_rule": "apg"})
    assert wan_entry(folder).experimental == ("iv-mixed", "fused")
