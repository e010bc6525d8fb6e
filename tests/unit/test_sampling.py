"""The mark `sample(n)`."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CASES = """
import pytest

@pytest.mark.sample(3)
@pytest.mark.parametrize("number", range({count}))
def test_costly(number):
    pass

def test_other():
    pass
"""
CONFTEST = """
import pytest
from tests.sampling import mark_unsampled

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    mark_unsampled(items)

def pytest_configure(config):
    config.addinivalue_line("markers", "slow")
    config.addinivalue_line("markers", "sample(n)")
"""


def run(pytester: pytest.Pytester, marks: str, *, count: int) -> set[str]:
    """The cases that pass."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(CASES.format(count=count))
    lines = pytester.runpytest_inprocess("-v", "-m", marks).outlines
    return {line.split()[0].partition("::")[2] for line in lines if "PASSED" in line}


def test_n_cases_run_and_soak_runs_the_others(pytester: pytest.Pytester) -> None:
    shared, others = run(pytester, "not slow", count=9), run(pytester, "slow", count=9)
    assert len(shared) == 3 + 1
    assert shared | others == {f"test_costly[{number}]" for number in range(9)} | {"test_other"}
    assert not shared & others


def test_another_case_exchanges_at_most_one(pytester: pytest.Pytester) -> None:
    assert len(run(pytester, "not slow", count=9) - run(pytester, "not slow", count=10)) <= 1
