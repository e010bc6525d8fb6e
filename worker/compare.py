"""Several samplers on one prompt and one seed, next to each other in one labelled video.

`ivmix generate --compare` and `make demo` use it. torch and av are imported only when frames are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.catalog.sampler_choice import or_use, settings_of
from service.errors import InvalidParameter
from service.jobs.released_loops import Family
from service.jobs.sampler_settings import USES

if TYPE_CHECKING:
    from worker.child.mp4 import Frames

# What --compare accepts: every sampler of the API, and DDIM with the image network.
SAMPLERS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in USES},
    "ddim": {"name": "ddim", "network": "video"},
    "ddim-image": {"name": "ddim", "network": "image"},
}
TITLES = {
    "ddim": "video model alone",
    "ddim-image": "image model alone",
    "iv-mixed": "IV-mixed",
    "zigzag": "Z-Sampling",
    "freeinit": "FreeInit",
    "fused": "fused (experimental)",
    "evs": "EVS",
    "official": "released code",
}
EXAMPLE = "ddim-image,ddim,iv-mixed"


@dataclass(frozen=True)
class ComparedClip:
    """One clip of a comparison and what it cost.

    Args:
        sampler: a key of `SAMPLERS`.
        frames: (F, H, W, 3) uint8.
        network_calls: calls of each network.
        seconds: of inference.
    """

    sampler: str
    frames: Frames
    network_calls: Mapping[str, int]
    seconds: float

    @property
    def cost(self) -> str:
        """Such as "20 image + 36 video calls, 3.4 s"."""
        calls = {name: count for name, count in self.network_calls.items() if count}
        noun = "call" if sum(calls.values()) == 1 else "calls"
        return f"{' + '.join(f'{count} {name}' for name, count in calls.items())} {noun}, {self.seconds:.1f} s"


def sampler_names(text: str) -> list[str]:
    """The names in a comma-separated list. Raises InvalidParameter for a name that is unknown, alone or repeated."""
    names = [name.strip() for name in text.split(",")]
    known = ", ".join(sorted(SAMPLERS))
    for name in names:
        if name not in SAMPLERS:
            raise InvalidParameter(
                "compare", f"--compare: unknown sampler '{name}'; use two or more of {known}, for example {EXAMPLE}."
            )
        if names.count(name) > 1:
            raise InvalidParameter("compare", f"--compare: '{name}' is named more than once; name each sampler once.")
    if len(names) == 1:
        raise InvalidParameter(
            "compare", f"--compare: '{text}' is one sampler; name two or more of {known}, or use --sampler for one."
        )
    return names


def compared_samplers(
    text: str, settings: Mapping[str, Any], family: Family = "animatediff"
) -> dict[str, dict[str, Any]]:
    """The samplers that `sampler_names` finds in `text`, each with those of the given settings that it uses.

    Args:
        text: their names.
        settings: of all of them.
        family: of the model.

    Raises InvalidParameter, also for a setting that none of them uses.
    """
    names = sampler_names(text)
    if "network" in settings:
        raise InvalidParameter("network", "--compare: leave out --network; ddim-image and ddim name the two networks.")
    used = {name: settings_of(SAMPLERS[name]["name"], family) for name in names}
    for setting in settings:
        if not any(setting in uses for uses in used.values()):
            way_out = f"leave it out{or_use(setting, family, 'add')}"
            raise InvalidParameter(setting, f"--compare: none of {', '.join(names)} has {setting}; {way_out}.")
    return {
        name: {setting: value for setting, value in settings.items() if setting in used[name]} | SAMPLERS[name]
        for name in names
    }


def write_comparison(arms: Sequence[ComparedClip], file: Path, *, fps: int) -> None:
    """Write the clips, which have one shape, next to each other as an mp4: titles above, network calls below."""
    from worker.child import mp4

    frames = mp4.side_by_side(
        [arm.frames for arm in arms], [TITLES[arm.sampler] for arm in arms], [arm.cost for arm in arms]
    )
    mp4.write_mp4(frames, file, fps=fps)
