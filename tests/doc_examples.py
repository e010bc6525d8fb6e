"""The examples of the README and docs/, read from the Markdown so that tests can run them as printed."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
ADDRESS = "http://127.0.0.1:8000"  # the server's address in every example


def example(document: Path, language: str, containing: str) -> str:
    """The one code block in this language that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    found = [block for block in blocks if containing in block]
    assert len(found) == 1, f"{document.name} has {len(found)} {language} examples with {containing!r}"
    return found[0]
