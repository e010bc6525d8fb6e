"""How often a sampling run calls each network, counted without torch.

The worker runs the plan of package `sampler`; a test asserts that its calls equal this count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache

from service.jobs.released_loops import CLEAN, RELEASED, Family, Move
from service.jobs.sampler_settings import SamplerSettings
from service.jobs.timestep_spacing import AnySpacing, Spacing

NETWORKS = {"I": "image", "V": "video"}


def network_calls(
    sampler: SamplerSettings, steps: int, spacing: AnySpacing, family: Family = "animatediff", first: int = 0
) -> dict[str, int]:
    """Return {"image": n, "video": n} for a whole run. The two branches of guidance count as one call.

    Args:
        steps: denoising steps of one run.
        family: whose released loop the sampler `official` runs.
        first: steps before the first one that runs, where the run begins at a reference; not for `official`.
    """
    return dict(_network_calls(sampler, steps, spacing, family, first))  # pyright: ignore[reportArgumentType]  # frozen models are hashable


@lru_cache(maxsize=1024)  # every status response contains them
def _network_calls(
    sampler: SamplerSettings, steps: int, spacing: AnySpacing, family: Family, first: int
) -> Mapping[str, int]:
    if sampler.name == "official" and isinstance(spacing, Spacing):
        moves = RELEASED[family].moves(steps, sampler.active_steps, sampler.zz, spacing)
    else:
        moves = _moves(sampler, range(first, steps), spacing, [*spacing.timesteps(steps), 0])
    calls = Counter(model for model, src, dst in moves if src != dst)
    runs = sampler.iterations if sampler.name == "freeinit" else 1
    return {model: runs * calls[model] for model in ("image", "video")}


def _moves(sampler: SamplerSettings, running: range, spacing: AnySpacing, levels: list[int]) -> Iterator[Move]:
    if (sampler.name, sampler.solver) == ("ddim", "lcm"):  # every step calls once, whatever the spacing
        yield from ((sampler.network, level, level - 1) for level in reversed(range(len(running))))
        return
    steps = running.stop
    active = _active(sampler.interval, steps)
    clean = CLEAN if spacing.set_alpha_to_one else 0
    if sampler.name == "evs":
        yield from _turns(sampler, running, [*levels[:steps], clean])
        return
    if sampler.name == "iv-mixed":
        yield from _zigzags(sampler, running, active, levels)
    for i in running:
        if i < _zero_steps(sampler):
            continue
        src, dst = levels[i], clean if i == steps - 1 else levels[i + 1]
        if sampler.name == "zigzag" and i in active and i < steps - 1:
            yield "video", src, dst
            yield "video", dst, src
        if sampler.name == "fused" and i in active:
            yield "image", src, dst
        if sampler.name == "ddim" and sampler.grid == "diffusers":
            below = src - spacing.num_train_timesteps // steps
            dst = below if below >= 0 else clean
        yield sampler.network if sampler.name == "ddim" else "video", src, dst


def _zero_steps(sampler: SamplerSettings) -> int:
    """Steps at the start whose velocity is 0."""
    reads = sampler.name in ("ddim", "iv-mixed") and sampler.guidance_rule == "cfg-zero"
    return sampler.zero_init_steps if reads else 0


def _active(interval: tuple[float, float], steps: int) -> range:
    begin, end = (round(share * steps) for share in interval)
    return range(begin, end)


def evs_networks(sampler: SamplerSettings, steps: int) -> list[str]:
    """The network of each step of EVS."""
    of_image = [i for i in _active(sampler.image_interval, steps) if i > 0][:: sampler.image_every]
    return ["image" if i in of_image else "video" for i in range(steps)]


def enlarged_calls(sampler: SamplerSettings, steps: int, first: int = 0) -> int:
    """How many calls of EVS's image network are on enlarged latents. A run that begins, at a reference, within image
    steps has them at the clip's size until the video network's turn."""
    if sampler.name != "evs" or sampler.enlarge in (None, 1):
        return 0
    running = evs_networks(sampler, steps)[first:]
    return running.count("image") - (running.index("video") if "video" in running else len(running))


def _turns(sampler: SamplerSettings, running: range, levels: list[int]) -> Iterator[Move]:
    """Yield the steps of EVS. One after which the latents change their size calls its network in any case."""
    networks = [*evs_networks(sampler, running.stop), "video"]
    for i in running:
        resizes = sampler.enlarge != 1 and networks[i] != networks[i + 1]
        yield networks[i], levels[i], CLEAN if resizes else levels[i + 1]


def _zigzags(sampler: SamplerSettings, running: range, active: range, levels: list[int]) -> Iterator[Move]:
    """Yield the moves of all zig-zags (IV-Mixed Sampler): up to `width` levels away and back again."""
    goback, _, denoise = sampler.combination.partition("-")
    width, steps = len(goback), running.stop
    denoise_first = sampler.order == "denoise_first"
    possible = range(min(steps - 1, steps - width + 1)) if denoise_first else range(width, steps)
    for k, i in enumerate(i for i in active if i in possible):
        if i not in running:  # the others keep the place that image_every counts
            continue
        away = [levels[i + n if denoise_first else i - n] for n in range(width + 1)]
        first, second = (denoise, goback) if denoise_first else (goback, denoise)
        for letters, path in ((first, away), (second, away[::-1])):
            for letter, src, dst in zip(letters, path, path[1:], strict=False):
                if letter in NETWORKS:  # R adds noise and calls no network
                    yield NETWORKS[letter] if k % sampler.image_every == 0 else "video", src, dst
