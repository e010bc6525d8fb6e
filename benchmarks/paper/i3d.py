"""I3D (arXiv:1705.07750), the network of FVD: 400 logits of Kinetics.

Names and shapes of parameters are those of the public PyTorch port (github.com/piergiaj/pytorch-i3d) and of
`i3d_pretrained_400.pt`. Convolutions and poolings pad as TensorFlow's SAME does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.errors import BenchmarkError

MIN_FRAMES = 9
PIXELS = range(193, 225)  # height and width: a 32nd, rounded up, are the 7 of the last pooling
CLASSES = 400

# Outputs of the four branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooling then 1x1. Table 1 of arXiv:1409.4842.
BRANCHES = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}


class I3d(nn.Module):
    """(B, 3, T, H, W) in [-1, 1] -> logits (B, 400): the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.MaxPool3d_2a_3x3 = SamePool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = SamePool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, branches in BRANCHES.items():
            if name in ("Mixed_4b", "Mixed_5b"):
                kernel, stride = ((3, 3, 3), (2, 2, 2)) if name == "Mixed_4b" else ((2, 2, 2), (2, 2, 2))
                self.add_module(f"pool_before_{name}", SamePool(kernel, stride))
            self.add_module(name, Mixed(channels, *branches))
            channels = branches[0] + branches[1][1] + branches[2][1] + branches[3]
        self.logits = Unit(channels, CLASSES, 1, is_plain=True)

    def forward(self, clips: Tensor) -> Tensor:
        if clips.ndim != 5 or clips.shape[2] < MIN_FRAMES or any(side not in PIXELS for side in clips.shape[3:]):
            raise BenchmarkError(
                f"I3D needs clips (n, 3, T, H, W) of {MIN_FRAMES} or more frames and {PIXELS[0]} to {PIXELS[-1]} "
                f"pixels in height and width, not {tuple(clips.shape)}; generate longer clips, or resize"
            )
        x = clips
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).squeeze(4).squeeze(3).mean(2)


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU; `is_plain`: a convolution with a bias and nothing else."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, *, is_plain: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=is_plain)
        self.bn = None if is_plain else nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_pad_same(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Mixed(nn.Module):
    def __init__(self, channels: int, one: int, two: tuple[int, int], three: tuple[int, int], four: int) -> None:
        super().__init__()
        self.b0 = Unit(channels, one, 1)
        self.b1a, self.b1b = Unit(channels, two[0], 1), Unit(two[0], two[1], 3)
        self.b2a, self.b2b = Unit(channels, three[0], 1), Unit(three[0], three[1], 3)
        self.b3a, self.b3b = SamePool((3, 3, 3), (1, 1, 1)), Unit(channels, four, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class SamePool(nn.Module):
    """Largest value; padding counts as 0, so that inputs must not be negative. They follow a ReLU."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros on both sides of the last three axes, the odd one at the end: outputs are inputs / stride, rounded up."""
    padding: list[int] = []
    for size, of_kernel, of_stride in zip(x.shape[2:], kernel, stride, strict=True):
        missing = max(0, (-(-size // of_stride) - 1) * of_stride + of_kernel - size)
        padding = [missing // 2, missing - missing // 2, *padding]  # F.pad wants the last axis first
    return F.pad(x, padding) if any(padding) else x
