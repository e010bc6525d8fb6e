"""`python -m tests.wording` refuses words that readers stumble over in code, comments, docs and messages.

Each entry is a word or phrase that has a plainer or more exact equivalent here. Exits with 1 if any file contains one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {"", ".css", ".html", ".js", ".lua", ".md", ".mjs", ".py", ".sh", ".toml", ".yaml", ".yml", ".Dockerfile"}
EXCEPT = {"LICENSE", "tests/wording.py", "tests/unit/test_wording.py"}

# Regular expressions, matched without regard to case and only where no letter precedes or follows.
WORDS = {
    r"films?": "video",
    r"some(body|one)": "the one who acts: a client, another worker",
    r"nobody": "no client, no worker",
    r"whoever|whosoever": "the one who acts, or: any caller that",
    r"told(?! apart)": "informed, notified, reported; of a webhook: delivered",
    r"tells(?! apart)": "reports, shows, informs",
    r"heard?s? of|hears": "learns of, receives",
    r"lies|lie|lay|lain": "is stored in, is in",
    r"as it must be|as they must be": "valid, expected",
    r"of (its|one's|their|our|his) own(?=[^\w\s])": "own, separate",
    r"at hand": "available",
    r"go(es)? on where|went on where|goes on from": "resumes",
    r"look(s|ed|ing)? after": "manages, follows",
    r"(brought|bring|brings) back": "requeued, restored",
    r"beside": "next to, alongside, in addition to",
    r"(is|are|was|were|be|been) away": "is unreachable, is down",
    r"books": "records, registries",
    r"couriers?": "webhook dispatcher",
    r"house": "service, deployment",
    r"grave": "its end",
    r"for ever": "forever, indefinitely",
    r"it is of no use|of no use": "is useless",
    r"as they stand|as it stands": "as printed, unchanged",
    r"complains? (of|about)": "reports, rejects",
}
PATTERN = re.compile(
    "|".join(f"(?P<w{i}>(?<![a-z])(?:{word})(?![a-z]))" for i, word in enumerate(WORDS)), re.IGNORECASE
)


class Hit(NamedTuple):
    line: int
    word: str
    suggestion: str


def findings(text: str) -> Iterator[Hit]:
    suggestions = list(WORDS.values())
    for number, line in enumerate(text.splitlines(), 1):
        for found in PATTERN.finditer(line):
            assert found.lastgroup is not None
            yield Hit(number, found[0], suggestions[int(found.lastgroup[1:])])


def files() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if name not in EXCEPT and path.suffix in SUFFIXES and "weights" not in path.parts and path.is_file():
            yield path


def main() -> int:
    count = 0
    for path in files():
        for finding in findings(path.read_text()):
            count += 1
            print(f"{path.relative_to(ROOT)}:{finding.line}: {finding.word!r}, better: {finding.suggestion}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
