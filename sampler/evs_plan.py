"""EVS (arXiv:2507.13753): image and video model take turns along one denoising run, without going back.

What is known of it here is the abstract and the README of its code (Tonniia/EVS); the code and the rest of the paper
could not be read, when last tried in 2026-11. Known: frames of the video model are to the image model samples from
outside its distribution, which it improves by noising and denoising; nothing is noised and denoised to change the
model, the models are switched during the denoising; the latents are larger while the image model works ("EP_X2.0": by
2); image steps come in between steps of the video model, a few-step AnimateDiff-Lightning or AnimateLCM. Assumed:

- at a switch the clean prediction is resized and noised to the level that the run is at, as a step of such a few-step
  model noises its prediction (`ResizingMove`); bicubic;
- the finished clip has the size of the video model's latents;
- which steps are the image model's: the second half. The first step is always the video model's, because there is no
  prediction before it.
"""

from __future__ import annotations

from sampler.denoise_and_goback_moves import AnyMove, ModelName, ResizingMove
from sampler.errors import InvalidSetting
from sampler.level_grid import LevelGrid
from sampler.plan import Plan
from sampler.schedule import Schedule
from sampler.validation import Range, active_steps, finite_number, whole_number

MOST_ENLARGED = 4  # 16 times the pixels


def evs_plan(
    schedule: Schedule,
    steps: int = 50,
    *,
    image_interval: Range = (0.5, 1.0),
    image_every: int = 1,
    enlarge: float = 2.0,
    guidance: float = 7.5,
    image_guidance: float | None = None,
    image_schedule: Schedule | None = None,
) -> Plan:
    """EVS: one call a step, of the image model in a part of the run and of the video model in the others.

    Args:
        schedule, steps: noise schedule of the video model, and the number of steps, as in `ddim_plan`.
        image_interval: the part of the run with image steps, as two fractions of the steps; never the first step.
        image_every: n from 1: only the first, (n+1)th .. step of that part is the image model's.
        enlarge: factor of the latents' height and width in image steps, 1 to 4; the size is rounded. At 1 every step is
            one of DDIM, and no noise is drawn.
        guidance, image_guidance: scale of the steps of the video model and of the image model (None: the same).
        image_schedule: of the image model, which is called at the timestep of equal noise. None: `schedule`.

    Returns:
        A plan that draws from the generator given to `sample`, unless `enlarge` is 1.

    Raises:
        InvalidSetting: names the parameter, its value and what is allowed.
    """
    grid = LevelGrid(schedule, steps, image_schedule)
    scales: dict[ModelName, float] = {"video": finite_number("guidance", guidance), "image": guidance}
    if image_guidance is not None:
        scales["image"] = finite_number("image_guidance", image_guidance)
    if not 1 <= finite_number("enlarge", enlarge) <= MOST_ENLARGED:
        raise InvalidSetting(f"enlarge={enlarge!r} must be in 1..{MOST_ENLARGED} (1: the latents keep their size)")
    models = _models(image_interval, image_every, grid.steps)
    sizes = [enlarge if model == "image" else 1.0 for model in models] + [1.0]
    return Plan(
        tuple((_step(grid, i, model, scales[model], sizes[i + 1] / sizes[i]),) for i, model in enumerate(models))
    )


def _step(grid: LevelGrid, i: int, model: ModelName, guidance: float, factor: float) -> AnyMove:
    """Step `i`, after which the latents are `factor` times as high and wide."""
    if factor == 1:
        return grid.ordinary_step(i, guidance, model)
    dst = 1.0 if i == grid.steps - 1 else grid.alphas[i + 1]
    return ResizingMove(model, grid.timestep(model, i), grid.alphas[i], dst, guidance, factor)


def _models(image_interval: Range, image_every: int, steps: int) -> list[ModelName]:
    """Which model makes each step."""
    period = whole_number("image_every", image_every, " (1: the image model in every step of the interval)")
    of_image = [i for i in active_steps(image_interval, steps, "image_interval") if i > 0][::period]
    return ["image" if i in of_image else "video" for i in range(steps)]
