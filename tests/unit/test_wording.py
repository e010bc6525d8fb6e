from __future__ import annotations

import pytest

from tests.wording import findings


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("# the answer is the film", "film"),
        ("told_of = {}", "told"),
        ("Whoever asks", "Whoever"),
        ("in a process of its own.", "of its own"),
        ("it goes on where it stopped", "goes on where"),
        ("while Redis is away", "is away"),
    ],
)
def test_refused_words_are_found(text: str, word: str) -> None:
    assert [finding.word for finding in findings(text)] == [word]


@pytest.mark.parametrize("text", ["filmed", "a layer", "besides", "clients", "tell apart", "controlled", "earlier"])
def test_other_words_pass(text: str) -> None:
    assert list(findings(text)) == []


def test_finding_names_line_and_suggestion() -> None:
    (finding,) = findings("fine\nthe film\n")
    assert (finding.line, finding.suggestion) == (2, "video")
