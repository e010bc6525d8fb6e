"""One plan of each kind, and what runs it with two toy networks."""

from __future__ import annotations

from torch import Tensor

from sampler import (
    AdaptiveProjectedGuidance,
    CfgZeroStar,
    ImageDenoiser,
    NoiseSchedule,
    Plan,
    VideoDenoiser,
    ddim_plan,
    evs_plan,
    free_init_plan,
    fused_plan,
    mixed_plan,
    official_plan,
    sample,
    zigzag_plan,
)
from tests.unit.sampler.networks import texts

SD = NoiseSchedule.scaled_linear(0.00085, 0.012, timestep_spacing="trailing")
SHAPE = (1, 4, 3, 4, 4)


def last(
    latents: Tensor,
    plan: Plan,
    image: object,
    video: object,
    text: tuple[Tensor, Tensor] | None = None,
    **settings: object,
) -> Tensor:
    cond, uncond = text or texts(len(latents))
    denoisers = {"image": ImageDenoiser(image, cond, uncond), "video": VideoDenoiser(video, cond, uncond)}
    return list(sample(latents, plan, **denoisers, **settings))[-1].latents  # type: ignore[arg-type]


# One plan of each kind; the second half of them draws noise.
PLANS: dict[str, Plan] = {
    "ddim": ddim_plan(SD, 6),
    "ddim image": ddim_plan(SD, 6, model="image"),
    **{f"mixed {c}": mixed_plan(SD, 6, combination=c) for c in ("I-I", "IV-IV", "VI-VI", "II-VV", "VV-VV")},
    "goback first": mixed_plan(SD, 6, order="goback_first", image_every=2),
    "z-sampling": zigzag_plan(SD, 6),
    "fused": fused_plan(SD, 6, interval=(0.0, 0.5)),
    "ddim apg": ddim_plan(SD, 6, rule=AdaptiveProjectedGuidance(eta=0.3, norm_threshold=2)),
    "mixed cfg-zero": mixed_plan(SD, 6, rule=CfgZeroStar(2)),
    "evs without resizing": evs_plan(SD, 6, enlarge=1, image_every=2),
    "official animatediff": official_plan("animatediff", SD, 6),
    "official modelscope": official_plan("modelscope", SD, 6),
    "official videocrafter": official_plan("videocrafter", SD, 6),
    **{f"mixed {c}": mixed_plan(SD, 6, combination=c, order="goback_first") for c in ("R-I", "RR-VV")},
    "evs": evs_plan(SD, 6, image_interval=(0.3, 0.7), enlarge=1.5),
    "evs to the end": evs_plan(SD, 4),
    "free init": free_init_plan(mixed_plan(SD, 3), SD, 2),
}


def zigzag(plan: Plan, i: int) -> Plan:
    return Plan((plan.steps[i][:-1],))
