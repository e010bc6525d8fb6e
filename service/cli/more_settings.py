"""Options that `submit` and `generate` share, and what both say of a video.

`--cache`; and `--set NAME=VALUE`, for settings of a sampler or a reference that have no option of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

OPTION: Any = typer.Option(  # Any: Typer's own return type
    "--set",
    metavar="NAME=VALUE",
    rich_help_panel="Sampler (default: the model's settings)",
    show_default=False,
    help="Another setting; may be repeated. With --input-reference: reference_use=start or first_frame, "
    "conditioning_scale. Of the sampler: guidance_rule=apg or cfg-zero, apg_eta, apg_norm_threshold, "
    "apg_momentum, zero_init_steps; evs: image_interval=0.5,0.8, enlarge, image_step_guidance; "
    "fused with Wan: image_frames=first.",
)

CACHE_OPTION: Any = typer.Option(
    help="Approximate, faster: deep-cache, first-block, taylorseer; or with settings "
    '{"name": "deep-cache", "steps": 2}. Default: none.',
    show_default=False,
)


def note(approximations: Sequence[str], *, is_experimental: bool) -> str:
    """What to know of a video, after the number of its steps."""
    approximate = f", approximate: {', '.join(approximations)}" if approximations else ""
    return approximate + (", experimental" if is_experimental else "")


def read(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Names and values; a comma makes a list, and what can be read as a number is one.

    Raises:
        typer.BadParameter: a text is not of the form NAME=VALUE, or names a setting twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and equals and text.strip()):
            raise typer.BadParameter(f"'{pair}' must be NAME=VALUE, for example enlarge=1.5", param_hint="--set")
        if name in settings:
            raise typer.BadParameter(f"{name} is given twice; give it once", param_hint="--set")
        values = [_number_or_text(part.strip()) for part in text.split(",")]
        settings[name] = values if len(values) > 1 else values[0]
    return settings


def _number_or_text(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
