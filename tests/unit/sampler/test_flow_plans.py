"""Plans for flow models and for pairs of different families: what they keep, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from sampler import (
    FlowSchedule,
    ImageDenoiser,
    IncompatibleInputs,
    InvalidSetting,
    Level,
    Move,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    ddim_plan,
    evs_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    noised,
    official_plan,
    sample,
    seeded_noise,
    zigzag_plan,
)
from sampler.prediction import alpha_at, flow_level
from tests.unit.sampler.mixture import Mixture, distance, image, last, of_betas, rms, video
from tests.unit.sampler.networks import Smooth, texts
from tests.unit.sampler.test_device_sync import CountReads

FLOW = FlowSchedule(3.0, "unipc")
SD = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing", set_alpha_to_one=True)
SHAPE = (2, 4, 3, 4, 5)
LATENTS = seeded_noise(SHAPE, [1, 2])
PLANS: dict[str, Plan] = {
    "plain": ddim_plan(FLOW, 6),
    "solver": ddim_plan(FLOW, 6, solver="dpmpp-2m"),
    "image": ddim_plan(FLOW, 6, model="image"),
    **{f"mixed {c}": mixed_plan(FLOW, 6, combination=c) for c in ("I-I", "IV-IV", "IV-VI", "II-VV", "VV-VV")},
    "goback first": mixed_plan(FLOW, 6, order="goback_first", image_every=2),
    "noise": mixed_plan(FLOW, 6, combination="RR-VV", order="goback_first"),
    "z-sampling": zigzag_plan(FLOW, 6),
    "fused": fused_plan(FLOW, 6, interval=(0.0, 0.5)),
    "evs": evs_plan(FLOW, 6, enlarge=1.5),
}


def models(batch: int = 2, **settings: Any) -> dict[str, Any]:
    cond, uncond = texts(batch)
    flow = {"prediction_type": "flow"}
    return {
        "image": ImageDenoiser(Smooth(0.1), cond, uncond, **flow, **settings),
        "video": VideoDenoiser(Smooth(0.4, mixing=True), cond, uncond, **flow),
    }


def generators(*seeds: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", PLANS)
def test_a_batch_equals_its_clips_and_a_resumed_run_itself(name: str) -> None:
    plan, drawing = PLANS[name], generators(3, 4)
    states, steps = [], []
    run = sample(LATENTS, plan, **models(), generator=drawing)
    for step in run:
        steps.append(step)
        states.append([g.get_state() for g in drawing])
    for clip, seed in enumerate((3, 4)):
        alone = last(plan, LATENTS[clip : clip + 1], **models(1), generator=generators(seed))
        torch.testing.assert_close(steps[-1].latents[clip : clip + 1], alone, atol=2e-5, rtol=1e-5)
    for step, state in zip(steps[:-1], states, strict=False):
        again = generators(0, 0)
        for generator, saved in zip(again, state, strict=True):
            generator.set_state(saved)
        rest = sample(step.latents, plan, **models(), start=step.index + 1, memory=step.memory, generator=again)
        assert torch.equal(list(rest)[-1].latents, steps[-1].latents)


def test_the_loop_reads_no_tensor_of_a_flow_as_a_number() -> None:
    """On a GPU each such read would wait for all queued work; the timesteps of flows are tensors."""
    for name, plan in PLANS.items():
        run = sample(LATENTS, plan, **models(frames="first" if name == "fused" else "all"), generator=Generator())
        with CountReads() as reads:
            assert len(list(run)) == len(plan)
        assert not reads.count


@pytest.mark.parametrize("order", ["denoise_first", "goback_first"])
def test_moves_of_the_image_model_commute_with_any_order_of_the_frames(order: Any) -> None:
    plan, frames = mixed_plan(FLOW, 6, combination="I-I", order=order), [2, 0, 1]
    of_image = Plan(tuple(tuple(m for m in moves if isinstance(m, Move) and m.model == "image") for moves in plan))
    assert of_image.calls["image"] == 10
    found = last(of_image, LATENTS[:, :, frames], **models())
    assert torch.equal(found, last(of_image, LATENTS, **models())[:, :, frames])


def test_every_step_estimates_the_clip_that_the_networks_see() -> None:
    """Also from pure noise, where epsilon says nothing of it."""
    clip = seeded_noise((2, 4, 3, 4, 5), 7)

    def knows(x: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        s = float(timestep) / 1000
        seen = clip.repeat(len(x) // 2, 1, 1, 1, 1) if x.ndim == 5 else clip.transpose(1, 2).reshape(-1, 4, 4, 5)
        seen = seen.repeat(len(x) // len(seen), *[1] * (x.ndim - 1))
        return (x - seen) / s

    denoisers = {
        "video": VideoDenoiser(knows, *texts(2), prediction_type="flow"),
        "image": ImageDenoiser(knows, *texts(2), prediction_type="flow"),
    }
    for name in ("plain", "solver", "mixed IV-IV", "fused"):
        steps = list(sample(LATENTS, PLANS[name], **denoisers))
        for step in steps:
            assert torch.allclose(step.estimate, clip, atol=2e-3)
        assert torch.allclose(steps[-1].latents, clip, atol=2e-3)


def test_a_zigzag_at_the_clean_end_turns_at_a_thousandth() -> None:
    """Where networks of betas turn at timestep 0. Networks are called at the level a move starts from, also backwards:
    an expert for noisy and one for clean levels is chosen by that."""
    plan = mixed_plan(FLOW, 4)
    timesteps = [[move.timestep for move in moves] for moves in plan]  # type: ignore[union-attr]
    grid = [t for t, _ in FLOW.levels(4)]
    assert timesteps[0] == [grid[0], grid[1], grid[2], grid[1], grid[0]]
    assert timesteps[2] == [grid[2], grid[3], pytest.approx(1.0), grid[3], grid[2]]
    assert all(call.alpha < 1 for moves in plan for move in moves for call in move.calls)
    fine = mixed_plan(FlowSchedule(0.2, num_train_timesteps=100), 50)  # its last level is below that
    denoising = [move for moves in fine for move in moves[:2] if len(moves) > 1]
    assert all(move.dst >= move.src for move in denoising)  # type: ignore[union-attr]


def test_an_image_model_of_another_family_is_called_at_equal_signal_to_noise() -> None:
    """The same network as epsilon on betas and as flow: only the nearest of 1000 timesteps differs."""
    begin = (0.2, 1.0)
    settings: dict[str, Any] = {"guidance": 1.5, "image_guidance": 0.5, "video_guidance": 0.5, "interval": begin}
    moved = (0.2, -0.3)
    v, flow, betas = Mixture("flow"), Mixture("flow", shift=moved), Mixture("epsilon", of_betas(SD), moved)
    grid = FlowSchedule(3.0)
    found = last(mixed_plan(grid, 25, image_schedule=SD, **settings), image=image(betas), video=video(v))
    same = last(mixed_plan(grid, 25, **settings), image=image(flow), video=video(v))
    other = FlowSchedule(7.0, "uniform", time_scale=1)  # shift and spacing of the image model's own runs do not matter
    scaled = Mixture("flow", lambda t: (1 - t, t), moved)
    rescaled = last(mixed_plan(grid, 25, image_schedule=other, **settings), image=image(scaled), video=video(v))
    assert distance(rescaled, same) <= 1e-4
    plain = last(ddim_plan(grid, 25, guidance=1.5), video=video(v))
    assert rms(found, same) < 0.05 * rms(same, plain)
    assert all(float(t).is_integer() for t in betas.times)


@pytest.mark.parametrize("order", ["denoise_first", "goback_first"])
def test_an_image_model_that_ends_below_pure_noise_is_refused_above_its_levels(order: Any) -> None:
    """Stable Diffusion's noisiest level is s = 0.936."""
    grid = FlowSchedule(3.0)
    for make in (mixed_plan, fused_plan):
        with pytest.raises(
            InvalidSetting, match=r"at level \d, s = (1\.000|0\.9\d\d), .*begin its interval at 0\.18 or"
        ):
            make(grid, 50, image_schedule=SD)
    plan = mixed_plan(grid, 50, image_schedule=SD, interval=(0.24, 1), order=order)
    noisiest = min(call.alpha for moves in plan for m in moves for call in m.calls if call.model == "image")
    assert flow_level(noisiest) <= flow_level(SD.alphas_cumprod[-1])
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(InvalidSetting, match=r"s = 1\.000"):  # networks of betas may begin at pure noise, too
        mixed_plan(NoiseSchedule.from_config(config), 10, image_schedule=SD)


def test_two_schedules_of_betas_still_meet_at_the_last_timestep() -> None:
    """AnimateDiff's last levels are noisier than any of Stable Diffusion's: runs of version 0.1 went on there."""
    motion = NoiseSchedule.linear(0.00085, 0.012, timestep_spacing="trailing")
    plan = mixed_plan(motion, 10, image_schedule=SD)
    assert plan.steps[0][0].timestep == 999  # type: ignore[union-attr]


def test_any_object_with_the_attributes_of_a_schedule_is_one() -> None:
    class Halves:
        """Each level half as noisy as the one before."""

        prediction_type = "flow"
        final_alpha = 1.0
        turn = Level(1.0, alpha_at(0.001))

        def levels(self, steps: int) -> tuple[Level, ...]:
            return tuple(Level(1000 * 0.5**i, alpha_at(0.5**i)) for i in range(steps))

        def timestep_at(self, alpha: float) -> float:
            return 1000 * flow_level(alpha)

    plan = mixed_plan(Halves(), 4, image_schedule=SD, interval=(0.5, 1))  # type: ignore[arg-type]
    assert [moves[-1].timestep for moves in plan] == [1000, 500, 250, 125]  # type: ignore[union-attr]
    assert last(plan, LATENTS, **models()).isfinite().all()


@pytest.mark.parametrize("schedule", [FLOW, "zero snr"])
def test_free_init_from_pure_noise_is_refused(schedule: Any) -> None:
    if schedule == "zero snr":
        schedule = NoiseSchedule.from_config({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    with pytest.raises(InvalidSetting, match=r"starts from pure noise \(s = 1\)"):
        free_init_plan(ddim_plan(schedule, 4), schedule)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ddim_plan(FLOW, 4, solver="lcm"), "must be a NoiseSchedule: solver='lcm'"),
        (lambda: ddim_plan(FLOW, 4, grid="diffusers"), "must be a NoiseSchedule: grid='diffusers'"),
        (lambda: official_plan("animatediff", FLOW, 4), "must be a NoiseSchedule: the released code"),  # type: ignore[arg-type]
        (lambda: ddim_plan(FlowSchedule, 4), "schedule=.* must be a NoiseSchedule; .*FlowSchedule.from_config"),  # type: ignore[arg-type]
        (lambda: ddim_plan(FLOW, 0), "steps=0 must be a whole number"),
    ],
)
def test_what_needs_betas_refuses_a_flow(make: Any, complaint: str) -> None:
    with pytest.raises(InvalidSetting, match=complaint):
        make()


@pytest.mark.parametrize("combination", ["II-VV", "VV-II", "II-II", "I-V", "IV-VV", "II-IV", "R-I"])
def test_combinations_that_leak_are_refused_for_pairs_off_distribution(combination: str) -> None:
    order: Any = "goback_first"
    with pytest.raises(InvalidSetting, match=rf"combination='{combination}' does not work with off_distribution=True"):
        mixed_plan(FLOW, 10, combination=combination, order=order, off_distribution=True)
    assert mixed_plan(FLOW, 10, combination=combination, order=order)


@pytest.mark.parametrize("combination", ["IV-IV", "IV-VI", "VI-IV", "VI-VI", "VV-VV", "I-I", "V-V"])
def test_the_other_combinations_are_the_same_for_them(combination: str) -> None:
    assert mixed_plan(FLOW, 10, combination=combination, off_distribution=True) == mixed_plan(
        FLOW, 10, combination=combination
    )


def test_only_those_combinations_let_the_image_models_own_picture_in() -> None:
    """Means off by 1.5, no guidance in the zig-zags: the clip should not move."""
    schedule, off = FlowSchedule(3.0, "uniform"), Mixture("flow", shift=(1.5, -1.5))
    pair = {"image": image(off), "video": video(Mixture("flow"))}
    plain = last(ddim_plan(schedule, 50, guidance=1.5), **pair)
    settings: dict[str, Any] = {"guidance": 1.5, "image_guidance": 0, "video_guidance": 0}
    leak = {
        c: rms(last(mixed_plan(schedule, 50, combination=c, **settings), **pair), plain) for c in ("IV-IV", "II-VV")
    }
    assert leak["IV-IV"] < 0.4
    assert leak["II-VV"] > 2.5
    assert rms(last(fused_plan(schedule, 50, **settings), **pair), plain) < 1e-5


def test_an_image_model_of_the_first_frame_changes_that_frame_alone() -> None:
    """In one fused step; later the video model carries the change on."""
    plan = fused_plan(FLOW, 6, image_guidance=1, video_guidance=0)
    for count, changed in ((1, [True, False, False]), (6, [True, True, True])):
        part = Plan(plan.steps[:count])
        seen: list[tuple[int, ...]] = []

        def network(x: Tensor, timestep: Any, encoder_hidden_states: Tensor, seen: Any = seen) -> Tensor:
            seen.append(tuple(x.shape))
            return Smooth(0.1)(x, timestep, encoder_hidden_states)

        pair = models()
        pair["image"] = ImageDenoiser(network, *texts(2), prediction_type="flow", frames="first")
        difference = last(part, LATENTS, **pair) - last(Plan(ddim_plan(FLOW, 6).steps[:count]), LATENTS, **pair)
        assert [bool(difference[:, :, f].abs().max() > 1e-4) for f in range(3)] == changed
        assert set(seen) == {(4, 4, 4, 5)}  # two CFG branches of two clips, one frame each
    first = last(plan, LATENTS[:, :, :1], **models(frames="first"))
    assert torch.equal(first, last(plan, LATENTS[:, :, :1], **models()))


@pytest.mark.parametrize("name", ["image", "mixed IV-IV", "goback first", "evs"])
def test_the_first_frame_alone_works_in_fused_plans_only(name: str) -> None:
    with pytest.raises(IncompatibleInputs, match=r"step \d has a move of the image model alone, .*fused_plan"):
        sample(LATENTS, PLANS[name], **models(frames="first"))
    with pytest.raises(IncompatibleInputs, match=r"sees the first frame only: uncond=1\.0 must be 0"):
        models(frames="first")["image"](LATENTS, 500.0, 0.5, 3.0)
    with pytest.raises(InvalidSetting, match="frames='last' is not supported; use one of 'all', 'first'"):
        models(frames="last")


def test_a_clip_starts_a_flow_at_any_level() -> None:
    clip = seeded_noise(SHAPE, 9)
    plan = ddim_plan(FLOW, 6).starting_at(3)
    assert plan.first_alpha == alpha_at(FLOW.sigmas(6)[3])
    assert ddim_plan(FLOW, 6).first_alpha == 0
    assert torch.equal(noised(clip, ddim_plan(FLOW, 6), noise=LATENTS), LATENTS)
    assert last(plan, noised(clip, plan, noise=LATENTS), **models()).isfinite().all()
