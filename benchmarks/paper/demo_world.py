"""The demo world as a benchmark: `demo/judges.py` is the feature network, and real clips are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from benchmarks.paper.clips import Frames, frames_of, mp4_bytes
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.networks import ClipFeatures, Columns, RealSet
from benchmarks.paper.prompts import Prompt
from demo import shapes
from demo.judges import WEIGHTS, Judges
from demo.shapes import BACKGROUNDS, COLORS, FPS, FRAMES, MOTIONS, SHAPES, SIZE, Scenes
from service.catalog.weight_files import file_sha256

PREPROCESSING = "area to 48x48, -1..1"
UPSCALE = 8  # of the demo model's clips
FOLLOWED = ("shape", "color", "background", "motion")
REAL_SEED = 501
OTHERS = 3  # sets of other real clips for each prompt, so that the floor's draws differ


@cache
def judges() -> Judges:
    """Of this process: their own reference takes seconds."""
    return Judges()


class JudgeNetwork:
    """Features of clips of the demo world at any multiple of 48 px, and how far they follow their prompts.

    Of a clip with one frame more, as models whose autoencoder compresses time make it (4k + 1), it is left out.
    """

    name = "judges"
    columns = Columns(
        spaces={"video": "video FD", "frame": "frame FD"},
        scores={
            "prompt": "prompt followed",
            "shape": "shape",
            "color": "colour",
            "background": "background",
            "motion": "motion",
            "coherence": "coherence",
            "wobble_px": "wobble px",
            "size_spread": "size spread",
            "watermark": "watermark",
            "degraded": "degraded",
        },
        lower_is_better=frozenset({"wobble_px", "size_spread", "watermark", "degraded"}),
    )

    @property
    def digest(self) -> str:
        return f"{file_sha256(WEIGHTS)[:16]} {PREPROCESSING}"

    def of_clip(self, frames: Frames, prompt: str) -> ClipFeatures:
        """`frames` (FRAMES or one more, 48 k, 48 k, 3). Raises BenchmarkError for others, or another world's prompt."""
        clip = _small(frames)
        of_frames, of_clip = judges().project(clip)
        scores = judges().score(clip, scene_of(prompt))
        scores["prompt"] = float(np.mean([scores[name] for name in FOLLOWED]))
        spaces = {"video": of_clip.double().numpy(), "frame": of_frames.double().numpy()}
        return ClipFeatures(spaces, {name: scores[name] for name in self.columns.scores})

    def real(self, prompts: Sequence[Prompt]) -> RealSet:
        """Sharp clips of the prompts, which pass through the same enlargement and mp4 as generated ones."""
        return real_clips(tuple(prompt.text for prompt in prompts))


@lru_cache(maxsize=1)
def real_clips(prompts: tuple[str, ...]) -> RealSet:
    """Features of sharp clips of captions, once in this process for one list. Raises BenchmarkError."""
    scenes = _joined([scene_of(prompt) for prompt in prompts])
    sets = [_real_set(scenes, REAL_SEED + i) for i in range(1 + OTHERS)]
    others = {space: np.concatenate([each[space] for each in sets[1:]]) for space in sets[0]}
    return RealSet(sets[0], others, "sharp clips of the same prompts, drawn by demo/shapes.py", is_by_prompt=True)


def _real_set(scenes: Scenes, seed: int) -> dict[str, np.ndarray]:
    sharp, _ = shapes.render(scenes, Generator().manual_seed(seed))
    found = [judges().project(_small(frames_of(mp4_bytes(_enlarged(clip), FPS)))) for clip in sharp]
    of_frames, of_clips = zip(*found, strict=True)
    return {"video": torch.stack(of_clips).double().numpy(), "frame": torch.stack(of_frames).double().numpy()}


def _small(frames: Frames) -> Tensor:
    """(F, H, W, 3) uint8 -> (1, FRAMES, 3, 48, 48) in -1..1."""
    count, height, width, _ = frames.shape
    if count not in (FRAMES, FRAMES + 1) or height != width or height % SIZE:
        raise BenchmarkError(
            f"a clip of {count} frames of {width}x{height}: the demo world's have {FRAMES} (or {FRAMES + 1}) of "
            f"{SIZE}x{SIZE} or a multiple of it"
        )
    pixels = torch.from_numpy(frames[:FRAMES]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(pixels, size=(SIZE, SIZE), mode="area")[None]


def _enlarged(clip: Tensor) -> Frames:
    """(F, 3, 48, 48) in -1..1 -> (F, 384, 384, 3) uint8, as the demo model's clips are enlarged."""
    large = F.interpolate(clip, scale_factor=UPSCALE, mode="bicubic").clamp(-1, 1)
    return ((large + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def scene_of(prompt: str) -> Scenes:
    """What a caption of the demo world names. Raises BenchmarkError."""
    words = prompt.split()
    try:
        _, color, shape, _, motion, _, _, background, _ = words
        named = (
            SHAPES.index(shape),
            list(COLORS).index(color),
            list(BACKGROUNDS).index(background),
            list(MOTIONS).index(motion),
        )
    except ValueError as e:
        raise BenchmarkError(
            f"prompt '{prompt}' is no caption of the demo world, such as 'a red circle moving left on a teal "
            "background'"
        ) from e
    return Scenes(*(torch.tensor([index]) for index in named))


def _joined(scenes: Sequence[Scenes]) -> Scenes:
    rows = [(scene.shape, scene.color, scene.background, scene.motion) for scene in scenes]
    return Scenes(*(torch.cat(column) for column in zip(*rows, strict=True)))
