"""From the frames of a clip to what a network takes, as each protocol does it.

Clips are uint8 (T, H, W, 3). Resizing is torch's, which torchvision 0.18 and later call for tensors, with the same
clamping and rounding; so torchvision is needed by a test only.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.paper.errors import BenchmarkError

Clip = NDArray[np.uint8]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # px


def middle_frames(count: int, available: int) -> list[int]:
    """Indices of `count` of the `available` frames: the middle of as many intervals, the last one repeated if there
    are too few. As `get_frame_indices` of github.com/OpenGVLab/unmasked_teacher with `sample="middle"`."""
    _require_frames(1, available)
    taken = min(count, available)
    edges = np.linspace(0, available, taken + 1).astype(int)  # truncated: rounding down decides between neighbours
    middles = [(int(start) + int(end) - 1) // 2 for start, end in pairwise(edges)]
    return middles + middles[-1:] * (count - taken)


def strided_frames(count: int, stride: int, available: int) -> list[int]:
    """Indices of the first `count` frames at `stride`. Raises BenchmarkError: the clip is too short."""
    _require_frames((count - 1) * stride + 1, available)
    return list(range(0, (count - 1) * stride + 1, stride))


def umt(clip: Clip, frames: int = 12, side: int = SIDE) -> Tensor:
    """(frames, 3, side, side), standardised: bicubic with antialias to a square, rounded to uint8 in between."""
    pixels = _pixels(clip)[middle_frames(frames, len(clip))]
    resized = F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False, antialias=True)
    rounded = resized.clamp(0, 255).round()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (rounded / 255 - mean) / std


def i3d_crop(clip: Clip) -> Tensor:
    """(3, T, 224, 224) in [-1, 1]: shorter side to 224, bilinear without antialias, centre crop. As `preprocess_single`
    of github.com/JunyaoHu/common_metrics_on_video_quality."""
    pixels = _pixels(clip) / 255
    height, width = pixels.shape[2:]
    scale = SIDE / min(height, width)
    size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    resized = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return ((resized[..., top : top + SIDE, left : left + SIDE] - 0.5) * 2).transpose(0, 1).contiguous()


def i3d_squash(clip: Clip) -> Tensor:
    """(3, T, 224, 224) in [-1, 1]: bilinear without antialias to a square. As `preprocess_i3d` of cd-fvd 0.1."""
    resized = F.interpolate(_pixels(clip), (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (2 * resized / 255 - 1).transpose(0, 1).contiguous()


def _pixels(clip: Clip) -> Tensor:
    """float32 (T, 3, H, W), 0 to 255."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape:
        raise BenchmarkError(f"a clip must be uint8 (T, H, W, 3), not {clip.dtype} {clip.shape}")
    return torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float()


def _require_frames(needed: int, available: int) -> None:
    if available < needed:
        raise BenchmarkError(f"the protocol takes {needed} frames, but a clip has {available}; generate longer clips")
