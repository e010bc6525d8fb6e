"""The README's examples, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
ADDRESS = "http://127.0.0.1:8000"  # what the README writes


def example(heading: str, language: str) -> str:
    """The first block of a language below a heading."""
    section = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found is not None, f"README has no {language} example under '{heading}'"
    return found.group(1)
