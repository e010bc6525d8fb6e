"""Which models can see clips through context windows."""

from __future__ import annotations

from service.catalog.family_components import Family, has_motion_adapter
from service.jobs.context_windows import ContextWindows


def check_windows(family: Family, windows: ContextWindows | None) -> None:
    """Raises ValueError."""
    if windows is not None and not has_motion_adapter(family):
        raise ValueError(
            f"context_windows are for motion modules, and family {family} has none: its 3D UNet takes all frames at "
            "once; delete context_windows"
        )
