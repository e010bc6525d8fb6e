"""EVS: whose steps are whose, and what a change of size does to latents and noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from sampler import (
    InvalidSetting,
    NoiseSchedule,
    Plan,
    ResizingMove,
    ddim_plan,
    evs_plan,
    noised,
    seeded_noise,
    shape_after,
)
from service.jobs.denoiser_calls import enlarged_calls
from service.jobs.sampler_settings import SamplerSettings
from tests.unit.sampler.networks import Constant
from tests.unit.sampler.plans import SD, SHAPE, last


def models_of(plan: Plan) -> str:
    return "".join({"image": "I", "video": "V"}[call.model] for step in plan for move in step for call in move.calls)


@pytest.mark.parametrize(
    ("settings", "models"),
    [
        ({}, "VVVVVIIIII"),
        ({"image_interval": (0.5, 0.8)}, "VVVVVIIIVV"),
        ({"image_interval": (0, 1)}, "VIIIIIIIII"),  # nothing is predicted before the first step
        ({"image_interval": (0, 1), "image_every": 3}, "VIVVIVVIVV"),
        ({"image_interval": (0.5, 0.5)}, "VVVVVVVVVV"),
    ],
)
def test_the_models_take_turns_with_one_call_a_step(settings: dict[str, Any], models: str) -> None:
    for enlarge in (1, 2):
        assert models_of(evs_plan(SD, 10, enlarge=enlarge, **settings)) == models


def test_without_resizing_each_step_is_that_of_one_models_ddim() -> None:
    own = NoiseSchedule.linear(0.0001, 0.02)
    plan = evs_plan(SD, 10, enlarge=1, guidance=7, image_guidance=3, image_schedule=own)
    assert plan.steps[:5] == ddim_plan(SD, 10, guidance=7).steps[:5]
    for (move,), (video,) in zip(plan.steps[5:], ddim_plan(SD, 10).steps[5:], strict=True):
        assert (move.src, move.dst, move.guidance) == (video.src, video.dst, 3)  # type: ignore[union-attr]
        assert move.timestep == own.nearest_timestep(video.src)  # type: ignore[union-attr]


@given(h=st.integers(1, 40), w=st.integers(1, 40), enlarge=st.floats(1, 4), every=st.integers(1, 3))
def test_the_clip_has_the_size_of_its_start_noise(h: int, w: int, enlarge: float, every: int) -> None:
    plan, shape = evs_plan(SD, 8, enlarge=enlarge, image_every=every), (1, 4, 3, h, w)
    assert shape_after(plan, shape, len(plan)) == shape
    assert shape_after(plan, shape, 4) == (1, 4, 3, max(1, round(h * enlarge)), max(1, round(w * enlarge)))


@pytest.mark.parametrize(("factor", "size"), [(2.0, (8, 8)), (1.5, (6, 6)), (0.5, (2, 2))])
@pytest.mark.parametrize("dst", [SD.alphas_cumprod[300], 1.0])
def test_a_change_of_size_keeps_the_prediction_and_the_noise_level(
    factor: float, size: tuple[int, int], dst: float
) -> None:
    """x' = sqrt(dst) S(x0) + sqrt(1 - dst) z; the generator's draws are all the noise there is."""
    src, x = SD.alphas_cumprod[500], seeded_noise(SHAPE, 100)
    plan = Plan(((ResizingMove("video", 500, src, dst, 1.0, factor),),))
    generator = Generator().manual_seed(4)
    found = last(x, plan, None, Constant(0.3), generator=generator)
    clean = (x - (1 - src) ** 0.5 * 0.3) / src**0.5
    frames = [F.interpolate(frame, size, mode="bicubic", antialias=True) for frame in clean.unbind(2)]
    noise = torch.randn((1, 4, 3, *size), generator=Generator().manual_seed(4))
    torch.testing.assert_close(found, dst**0.5 * torch.stack(frames, 2) + (1 - dst) ** 0.5 * noise)
    fresh = torch.equal(generator.get_state(), Generator().manual_seed(4).get_state())
    assert fresh == (dst == 1)  # nothing is drawn that is not used


@pytest.mark.parametrize("begin", range(10))
@pytest.mark.parametrize("settings", [{}, {"image_interval": (0.2, 0.9), "image_every": 2}])
def test_a_run_that_begins_at_a_clip_keeps_its_size(begin: int, settings: dict[str, Any]) -> None:
    """Also within image steps: these then have the size of the clip, as nothing has enlarged it."""
    plan = evs_plan(SD, 10, **settings)
    rest, image = plan.starting_at(begin), Constant(0.1)
    x = noised(seeded_noise(SHAPE, 102), rest, generator=Generator().manual_seed(2))
    assert last(x, rest, image, Constant(0.2), generator=Generator().manual_seed(3)).shape == SHAPE
    models = models_of(rest)
    small = len(models) - len(models.lstrip("I"))
    assert [shape[-2:] for shape, _ in image.calls] == [(4, 4)] * small + [(8, 8)] * (models.count("I") - small)
    sampler = SamplerSettings.model_validate({"name": "evs", "enlarge": 2, **settings})
    assert enlarged_calls(sampler, 10, begin) == models.count("I") - small
    assert sum(rest.calls.values()) == 10 - begin


def test_the_image_model_sees_larger_frames_and_the_video_model_the_clip() -> None:
    image, video = Constant(0.1), Constant(0.2)
    plan = evs_plan(SD, 10, image_interval=(0.4, 0.8), enlarge=2.5, guidance=1)
    clip = last(seeded_noise(SHAPE, 101), plan, image, video, generator=Generator().manual_seed(1))
    assert [shape for shape, _ in image.calls] == [(3, 4, 10, 10)] * 4
    assert [shape for shape, _ in video.calls] == [SHAPE] * 6
    assert clip.shape == SHAPE
    assert str(plan).splitlines()[1:-1] == [
        "0-2, 8-9  5      V     D_V    +1        1 V",
        "3         1      V     D>_V   +1        1 V",
        "4-6       3      I     D_I    +1        1 I",
        "7         1      I     D<_I   +1        1 I",
    ]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"image_interval": (0.6, 0.4)}, r"image_interval=\(0.6, 0.4\) must be two fractions"),
        ({"image_every": 0}, "image_every=0 must be a whole number"),
        ({"enlarge": 0.5}, r"enlarge=0.5 must be in 1\.\.4"),
        ({"enlarge": 5}, r"enlarge=5 must be in 1\.\.4"),
        ({"enlarge": math.nan}, "enlarge=nan must be a finite number"),
        ({"guidance": math.inf}, "guidance=inf must be a finite number"),
        ({"image_guidance": "3"}, "image_guidance='3' must be a finite number"),
    ],
)
def test_values_that_cannot_work_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        evs_plan(SD, 10, **settings)
