"""DDIM with one model alone, against the formula written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sampler import ImageDenoiser, InvalidSetting, NoiseSchedule, ddim_plan, sample, seeded_noise
from tests.unit.sampler.networks import Smooth, texts

SD = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing")
SHAPE = (2, 4, 3, 4, 5)
NETWORK = Smooth(0.2)


def ddim_by_hand(frame: Tensor, schedule: NoiseSchedule, timesteps: list[int], guidance: float) -> Tensor:
    """One frame (1, C, h, w) through arXiv:2010.02502 Eq. 12 with eta = 0."""
    cond, uncond = texts()
    levels = [*(schedule.alphas_cumprod[t] for t in timesteps), schedule.final_alpha]
    for i, t in enumerate(timesteps):
        here, there = levels[i], levels[i + 1]
        without, given = NETWORK(frame, t, uncond), NETWORK(frame, t, cond)
        eps = without + guidance * (given - without)
        clean = (frame - (1 - here) ** 0.5 * eps) / here**0.5
        frame = there**0.5 * clean + (1 - there) ** 0.5 * eps
    return frame


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.25])
def test_image_model_alone_is_ddim_on_every_frame_by_itself(guidance: float, to_one: bool) -> None:
    schedule = replace(SD, set_alpha_to_one=to_one)
    plan = ddim_plan(schedule, 5, guidance=guidance, model="image")
    noise = seeded_noise(SHAPE, [1, 2])
    *_, last = sample(noise, plan, image=ImageDenoiser(NETWORK, *texts(2)))
    for clip in range(SHAPE[0]):
        for frame in range(SHAPE[2]):
            expected = ddim_by_hand(noise[clip : clip + 1, :, frame], schedule, [999, 799, 599, 399, 199], guidance)
            torch.testing.assert_close(last.latents[clip : clip + 1, :, frame], expected)


def test_frames_of_the_image_model_depend_on_no_other_frame() -> None:
    image, plan = ImageDenoiser(NETWORK, *texts(2)), ddim_plan(SD, 4, model="image")
    noise = seeded_noise(SHAPE, [1, 2])
    changed = noise.clone()
    changed[:, :, 1] = seeded_noise(SHAPE, [3, 4])[:, :, 1]
    ends = [[*sample(x, plan, image=image)][-1].latents for x in (noise, changed)]
    same = [torch.equal(ends[0][:, :, i], ends[1][:, :, i]) for i in range(3)]
    assert same == [True, False, True]


def test_one_call_a_step_of_the_named_model_at_its_own_levels() -> None:
    other = NoiseSchedule.linear(0.0001, 0.02)
    plan = ddim_plan(other, 10, guidance=3, model="image")
    assert plan.calls == plan.nominal_calls == {"image": 10, "video": 0}
    assert ddim_plan(other, 10).calls == {"image": 0, "video": 10}
    moves = [move for (move,) in plan]
    assert [move.timestep for move in moves] == list(other.timesteps(10))
    assert [move.src for move in moves] == [other.alphas_cumprod[t] for t in other.timesteps(10)]
    assert repr(plan).replace("'image'", "'video'") == repr(ddim_plan(other, 10, guidance=3))


def test_printed_plan_names_the_model() -> None:
    row = str(ddim_plan(SD, 4, guidance=1.5, model="image")).splitlines()[1]
    assert row.split() == ["0-3", "4", "I", "D_I", "+1.5", "1", "I"]


@pytest.mark.parametrize("model", ["", "Image", "both", None, 1])
def test_unknown_model_is_named_with_those_that_exist(model: object) -> None:
    with pytest.raises(InvalidSetting, match=r"model=.* is not supported; use one of 'image', 'video'"):
        ddim_plan(SD, 4, model=model)  # type: ignore[arg-type]
