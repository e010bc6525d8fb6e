"""`python -m tests.sizes` refuses functions and files that are too long to read at once.

A function counts from its `def` to its last line, docstring included. Exits with 1 if any is over the limit.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("service", "worker", "sampler", "demo", "benchmarks", "tools", "tests")
SUFFIXES = {".css", ".html", ".js", ".lua", ".mjs", ".py", ".sh"}
DATA = ("tests/data", "demo/weights")
FUNCTION_LINES, FILE_LINES = 40, 350


def findings(name: str, text: str) -> Iterator[str]:
    """What is too long in the file `name`."""
    if (lines := len(text.splitlines())) > FILE_LINES:
        yield f"{name}: {lines} lines, at most {FILE_LINES}: split it by subject"
    for node in ast.walk(ast.parse(text)) if name.endswith(".py") else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}: move a part out"


def files() -> Iterator[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *FOLDERS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix in SUFFIXES and not name.startswith(DATA) and path.is_file():
            yield path


def main() -> int:
    found = [line for path in files() for line in findings(str(path.relative_to(ROOT)), path.read_text())]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
