"""The sampling loops that the paper's authors released: their settings, and their network calls counted without torch.

Package `sampler` runs them (`official_plan`) and explains their quirks; tests assert that both agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from service.jobs.timestep_spacing import Spacing

Family = Literal["animatediff", "animatediff-sdxl", "modelscope", "videocrafter", "wan", "cogvideox"]

CLEAN = -1  # the noise-free level; all others are named by their timestep

Move = tuple[str, int, int]  # network, from level, to level; no call if both levels are the same


@dataclass(frozen=True)
class ReleasedLoop:
    """How the released file of one family differs from the others."""

    active_steps: tuple[int, int]  #: first and last step with a zig-zag, both included
    zz: int | None  #: in every zz-th step the video model replaces the image model; None: there is no such setting
    ignored: frozenset[str] = frozenset()  #: settings of sampler `official` that this file lacks or never uses
    swaps_timesteps: bool = False  #: each of the two denoising moves runs at the timestep of the other
    has_solver: bool = False  #: SDE-DPM-Solver++ makes the ordinary steps, else DDIM

    def most_steps(self, num_train_timesteps: int) -> int:
        """The solver's timesteps begin one above the clean end."""
        return num_train_timesteps - self.has_solver

    def moves(
        self, steps: int, active_steps: tuple[int, int] | None, zz: int | None, spacing: Spacing
    ) -> Iterator[Move]:
        """The moves of a run of at most `most_steps` steps, in order. None: as released."""
        count = spacing.num_train_timesteps
        gap = count // steps
        end = CLEAN if spacing.set_alpha_to_one and not self.has_solver else 0

        def after(t: int) -> int:
            return t - gap if t >= gap else end

        first_active, last_active = active_steps or self.active_steps
        zz = (zz or self.zz) if self.zz else None
        for i, t in enumerate(self._timesteps(steps, count)):
            if first_active <= i <= last_active:
                p = max(0, t - gap)
                network = "video" if zz is not None and i % zz == zz - 1 else "image"
                t_first, t_second = (p, t) if self.swaps_timesteps else (t, p)
                yield network, t_first, after(t_first)
                yield "video", t_second, after(t_second)
                yield network, after(p), p
                yield "video", after(t), t
            yield "video", t, CLEAN if self.has_solver else after(t)

    def _timesteps(self, steps: int, count: int) -> list[int]:
        if self.has_solver:
            return [round(i * (count - 1) / steps) for i in range(steps, 0, -1)]
        return Spacing(timestep_spacing="linspace", num_train_timesteps=count).timesteps(steps)


GUIDANCE = frozenset({"image_guidance", "video_guidance", "rho"})  # always 4 where it is ignored
RELEASED: dict[Family, ReleasedLoop] = {  # of the other families nothing was released
    "animatediff": ReleasedLoop((0, 49), 1000, swaps_timesteps=True),
    "modelscope": ReleasedLoop((0, 49), None, GUIDANCE | {"zz"}),
    "videocrafter": ReleasedLoop((0, 60), 3, GUIDANCE, has_solver=True),
}
