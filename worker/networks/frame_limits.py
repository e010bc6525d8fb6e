"""How many frames the networks take that number them: motion modules and SparseCtrl.

With context windows they see no more frames at once than a window has, however long the clip is.
"""

from __future__ import annotations

from typing import Any

from service.catalog.model_entry import ModelEntry
from service.jobs.context_windows import ContextWindows

POSITIONS = (
    "motion_max_seq_length"  # in the configs of diffusers' MotionAdapter, UNetMotionModel, SparseControlNetModel
)


def most_frames(*networks: Any) -> int | None:  # Any: diffusers' networks share no type
    """The frames that all of these networks take at once; None if none of them numbers its frames."""
    found = [getattr(network.config, POSITIONS, None) for network in networks]
    return min((int(most) for most in found if most is not None), default=None)


def seen_at_once(num_frames: int, windows: ContextWindows | None) -> int:
    """How many frames of a clip the networks see at once; `windows` are those of a clip that needs them."""
    return num_frames if windows is None else windows.length


def frames_mismatch(entry: ModelEntry, part: str, longest: int) -> str | None:
    """Why a network that takes `longest` frames cannot make the entry's longest clip; None if it can.

    Args:
        part: what the network is called in the sentence.
    """
    windows = entry.context_windows
    if seen_at_once(int(entry.num_frames.max), windows) <= longest:
        return None
    if windows is not None:
        return (
            f"model {entry.id}: context_windows.length={windows.length}, but {part} takes {longest} frames; write "
            f"{longest} or less"
        )
    return (
        f"model {entry.id}: num_frames.max={entry.num_frames.max}, but {part} takes {longest} frames; write {longest} "
        f"or less, or add context_windows = {{ length = {longest} }}"
    )
