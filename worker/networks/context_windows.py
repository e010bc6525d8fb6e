"""Motion modules that see a long clip through windows of the length that they were trained for.

Window-based attention fusion (FreeNoise, arXiv:2310.15169): in each block the attention over time runs in windows that
overlap, and what they say of a frame is averaged. All other layers see the clip frame by frame and stay as they are.
"""

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor

from service.jobs.context_windows import ContextWindows, WeightingScheme

Share = tuple[int, int, Tensor]  # first and last frame + 1 of what a window says, and its weights (frames, 1)


class WindowedMotion:
    """The motion modules of a video UNet, as they are or, inside `active`, with windows.

    Only the `forward` of their blocks is replaced: the weights stay, and direct calls of the UNet give what they gave.
    """

    def __init__(self, unet: Any) -> None:  # Any: diffusers' UNets share no type
        modules = (module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D))
        self.blocks: list[Any] = [block for module in modules for block in module.transformer_blocks]

    @contextmanager
    def active(self, windows: ContextWindows | None, num_frames: int) -> Generator[None]:
        """Nothing changes if one window holds the whole clip."""
        if windows is None or num_frames <= windows.length:
            yield
            return
        # A compiled loop over the windows would be compiled for every length of clip: these blocks run uncompiled.
        compiled = [block._compiled_call_impl for block in self.blocks]
        for block in self.blocks:
            block.forward, block._compiled_call_impl = partial(_windowed, block, windows), None
        try:
            yield
        finally:
            for block, call in zip(self.blocks, compiled, strict=True):
                del block.forward
                block._compiled_call_impl = call


def _windowed(block: Any, windows: ContextWindows, hidden_states: Tensor, **_unused: Any) -> Tensor:
    """The forward pass of a motion module's BasicTransformerBlock; hidden_states (B*h*w, F, C).

    The feed-forward layer, which sees each frame by itself, comes after the average, as in diffusers'
    FreeNoiseTransformerBlock.
    """
    mixed = torch.zeros_like(hidden_states)
    num_frames = hidden_states.shape[1]
    for start, (first, end, share) in zip(
        windows.starts(num_frames),
        shares(windows, num_frames, mixed.dtype, mixed.device),  # pyright: ignore[reportArgumentType]  # frozen models are hashable
        strict=True,
    ):
        attended = _attended(block, hidden_states[:, start : start + windows.length])
        mixed[:, first:end].addcmul_(attended[:, first - start : end - start], share)
    return block.ff(block.norm3(mixed)) + mixed


def _attended(block: Any, x: Tensor) -> Tensor:
    """The attention layers of the block on the frames of one window."""
    for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        if attention is not None:
            seen = norm(x) if block.pos_embed is None else block.pos_embed(norm(x))
            x = attention(seen) + x
    return x


@cache
def shares(windows: ContextWindows, num_frames: int, dtype: torch.dtype, device: torch.device) -> list[Share]:
    """What each window contributes to its frames; the weights of a frame add up to 1.

    A last window that is not a whole stride after the one before speaks for the frames that only it has seen, as in
    diffusers. Divided before they are added, where diffusers divides the sum, which may overflow in half precision.
    """
    weights = torch.tensor(frame_weights(windows.length, windows.weighting_scheme), dtype=torch.float64)
    spans: list[tuple[int, int, int]] = []
    end = 0
    for index, start in enumerate(windows.starts(num_frames)):
        first = start if start == index * windows.stride else end
        end = start + windows.length
        spans.append((start, first, end))
    total = torch.zeros(num_frames, dtype=torch.float64)
    for start, first, end in spans:
        total[first:end] += weights[first - start :]
    return [
        (first, end, (weights[first - start :] / total[first:end])[:, None].to(device, dtype))
        for start, first, end in spans
    ]


def frame_weights(length: int, scheme: WeightingScheme) -> list[float]:
    """Weights of the frames of a window; only their ratios matter."""
    rising = [float(i) for i in range(1, length // 2 + 1)]
    middle = [float(length // 2 + 1)] if length % 2 else []
    match scheme:
        case "flat":
            return [1.0] * length
        case "pyramid":
            return [*rising, *middle, *reversed(rising)]
        case "delayed_reverse_sawtooth":  # late frames of a window count, those next to its middle most
            early = [0.01] * (len(rising) - (not middle))
            peak = middle or rising[-1:]
            return [*early, *peak, *reversed(rising)]
