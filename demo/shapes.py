"""The demo world: captioned clips of one coloured shape moving over a plain background.

Every property named in a caption is known exactly, so accuracy can be measured. `render` draws sharp clips (for the
image model); `degrade` turns them into the footage that video models are typically trained on: blurred, washed out,
noisy, with a stock-footage watermark.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIZE = 48  # pixels, both sides
FRAMES = 8
FPS = 8

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (0.90, 0.12, 0.15),
    "green": (0.13, 0.75, 0.25),
    "blue": (0.15, 0.30, 0.92),
    "yellow": (0.98, 0.85, 0.10),
    "purple": (0.62, 0.20, 0.80),
}
BACKGROUNDS = {
    "black": (0.06, 0.06, 0.07),
    "white": (0.95, 0.95, 0.95),
    "teal": (0.10, 0.50, 0.52),
    "pink": (0.98, 0.68, 0.75),
}
MOTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
NEGATIVE_PROMPT = "low quality"
VOCABULARY = (
    *("a", "on", "moving", "background", "low", "quality"),
    *(*SHAPES, *COLORS, *BACKGROUNDS, *MOTIONS),
)

RADIUS = (7.0, 9.5)  # px
SPEED = (1.0, 1.6)  # px per frame
# The middle of a track is LEAD px from the middle of the picture in the direction of motion, +- CENTER_JITTER.
# Without the lead, neither the word "left" nor the frame number alone predicts a position, only their product, and a
# video model takes very long to learn it.
LEAD = 4.0
CENTER_JITTER = 3.0

_COLOR = torch.tensor(list(COLORS.values()))
_BACKGROUND = torch.tensor(list(BACKGROUNDS.values()))
_MOTION = torch.tensor(list(MOTIONS.values()))


@dataclass(frozen=True)
class Scenes:
    """The contents of n clips: index tensors of shape (n,) into SHAPES, COLORS, BACKGROUNDS and MOTIONS."""

    shape: Tensor
    color: Tensor
    background: Tensor
    motion: Tensor

    @staticmethod
    def random(n: int, generator: Generator) -> Scenes:
        def draw(kinds: int) -> Tensor:
            return torch.randint(0, kinds, (n,), generator=generator)

        return Scenes(draw(len(SHAPES)), draw(len(COLORS)), draw(len(BACKGROUNDS)), draw(len(MOTIONS)))

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(self.shape[index], self.color[index], self.background[index], self.motion[index])

    def captions(self) -> list[str]:
        return [caption(*row) for row in self.rows()]

    def rows(self) -> list[tuple[int, int, int, int]]:
        columns = (self.shape, self.color, self.background, self.motion)
        return [(int(s), int(c), int(b), int(m)) for s, c, b, m in zip(*columns, strict=True)]


def caption(shape: int, color: int | None, background: int | None, motion: int | None) -> str:
    """The caption of a scene; properties that are None are not mentioned."""
    colored = "" if color is None else f"{list(COLORS)[color]} "
    moving = "" if motion is None else f" moving {list(MOTIONS)[motion]}"
    behind = "" if background is None else f" on a {list(BACKGROUNDS)[background]} background"
    return f"a {colored}{SHAPES[shape]}{moving}{behind}"


def render(scenes: Scenes, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw sharp clips: (n, FRAMES, 3, SIZE, SIZE) in [-1, 1], and the shapes' centres (n, FRAMES, 2) in px (x, y)."""
    n = len(scenes)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    radius, speed = uniform(*RADIUS), uniform(*SPEED)
    direction = _MOTION[scenes.motion]  # (n, 2)
    jitter = torch.stack([uniform(-CENTER_JITTER, CENTER_JITTER) for _ in range(2)], -1)
    frame = torch.arange(FRAMES) - (FRAMES - 1) / 2
    along = LEAD + speed[:, None] * frame  # (n, F)
    centers = SIZE / 2 + jitter[:, None] + direction[:, None] * along[..., None]

    pixel = torch.arange(SIZE) + 0.5
    dx = pixel[None, None, None, :] - centers[..., 0, None, None]  # (n, F, 1, SIZE)
    dy = pixel[None, None, :, None] - centers[..., 1, None, None]  # (n, F, SIZE, 1)
    distance = _signed_distance(scenes.shape, dx, dy, radius)[:, :, None]  # (n, F, 1, SIZE, SIZE)
    inside = (0.5 - distance).clamp(0, 1)
    light = (0.92 + 0.16 * (1 - pixel / SIZE))[:, None]  # slightly brighter at the top
    frames = _BACKGROUND[scenes.background][:, None, :, None, None] * light * (1 - inside)
    frames = frames + _COLOR[scenes.color][:, None, :, None, None] * inside
    outline = (1.3 - (distance + 1.0).abs()).clamp(0, 1)  # fine detail that only sharp clips have
    return (frames * (1 - 0.55 * outline)).clamp(0, 1) * 2 - 1, centers


def _signed_distance(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Distance to the outline in px, negative inside. Shapes of equal radius have about the same area."""
    r = radius[:, None, None, None]
    circle = torch.sqrt(dx**2 + dy**2) - r
    square = torch.maximum(dx.abs(), dy.abs()) - 0.86 * r
    side_x, side_y = 0.894, 0.447  # outward normal of the slanted sides, apex up
    slanted = dx.abs() * side_x - (dy + 1.2 * r) * side_y
    triangle = torch.maximum(dy - 1.0 * r, slanted)
    which = shape[:, None, None, None]
    return torch.where(which == 0, circle, torch.where(which == 1, square, triangle))


def degrade(frames: Tensor, generator: Generator, *, vivid: Tensor | float = 0.0) -> Tensor:
    """Turn sharp frames (..., 3, SIZE, SIZE) into cheap stock footage of the same shape and range.

    `vivid` from 0 to 1 (broadcast to the frames) restores that share of the colours; blur, noise and watermark remain.
    """
    x = (blur(frames, sigma=1.4) + 1) / 2
    gray = x.mean(-3, keepdim=True)
    x = gray + (x - gray) * (0.55 + 0.45 * vivid)  # washed out
    x = 0.5 + (x - 0.5) * (0.75 + 0.25 * vivid)  # low contrast
    x = x * (1 - 0.40 * WATERMARK) + 0.40 * 0.90 * WATERMARK
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1) * 2 - 1


def blur(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (..., C, H, W), edges replicated."""
    reach = 5
    taps = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    x = F.pad(frames.reshape(-1, 1, *frames.shape[-2:]), (reach,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
    return x.view(frames.shape)


def _watermark() -> Tensor:
    """(SIZE, SIZE) in {0, 1}: a band of block letters at a fixed position, as on stock footage."""
    rows = ("111010111011", "101010100010", "111010111010", "100010001010", "100010111010")
    mask = torch.zeros(SIZE, SIZE)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            mask[30 + 2 * i : 32 + 2 * i, 6 + 3 * j : 8 + 3 * j] = float(cell)
    return mask


WATERMARK = _watermark()
