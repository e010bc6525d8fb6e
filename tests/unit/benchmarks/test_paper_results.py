"""What a table refuses, and what it says of a run that is not the benchmark's."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.prompts import prompts_of
from benchmarks.paper.protocols import protocol
from benchmarks.paper.results import Question, base_request, check_run, deviations
from benchmarks.paper.run_folder import Run
from benchmarks.paper.table import Table, html, text

DEMO = protocol("demo")
PROMPTS = prompts_of(DEMO, Path(), None)
QUESTION = Question(DEMO, PROMPTS, first=200, clips=3, arms=None, suffix="mp4", permutations=9)
RUN = Run(
    benchmark="demo",
    protocol=DEMO.digest,
    model="demo",
    weights=None,
    prompts=PROMPTS.digest,
    prompts_file=PROMPTS.sha256,
    n=200,
    request=base_request(DEMO),
    cut_prompts=False,
    batch=1,
)


def test_a_run_of_the_benchmark_deviates_in_nothing() -> None:
    check_run(RUN, QUESTION)
    assert deviations(RUN, QUESTION) == []


def test_every_deviation_is_named() -> None:
    other = {"prompts_file": "0", "cut_prompts": True, "request": {**RUN.request, "size": "48x48", "seconds": 2}}
    few = Question(DEMO, PROMPTS, first=20, clips=1, arms=None, suffix="mkv", permutations=9)
    found = deviations(RUN.model_copy(update=other), few)
    assert len(found) == 7
    assert "20 prompts instead of 200" in found
    assert 'size "48x48" instead of "384x384"' in found


@pytest.mark.parametrize(
    ("other", "problem"),
    [({"protocol": "0"}, "protocol 0"), ({"benchmark": "msr-vtt"}, "of msr-vtt"), ({"prompts": "0"}, "same --prompts")],
    ids=["protocol", "benchmark", "prompts"],
)
def test_clips_of_another_protocol_or_list_are_refused(other: dict[str, str], problem: str) -> None:
    with pytest.raises(BenchmarkError, match=f"protocol mismatch.*{problem}"):
        check_run(RUN.model_copy(update=other), QUESTION)


def test_tables_are_markdown_in_a_terminal_and_html_on_the_page() -> None:
    sections = [Table(["arm", "FD"], [["a<b", "1.0"]]), "one\ntwo"]
    assert text(sections) == "| arm | FD  |\n| --- | --- |\n| a<b | 1.0 |\n\none\ntwo\n"
    assert "<td>a&lt;b</td>" in html(sections)
    assert html(sections).endswith("<p>one</p><p>two</p>")
