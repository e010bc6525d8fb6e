from __future__ import annotations

import pytest

from tests.sizes import FILE_LINES, FUNCTION_LINES, files, findings


def function(lines: int, *, head: str = "def f():", indent: str = "") -> str:
    body = ['    """What it does."""', *["    x = 1"] * (lines - 2)]
    return "".join(f"{indent}{line}\n" for line in [head, *body])


@pytest.mark.parametrize(
    "text",
    [
        function(FUNCTION_LINES + 1),
        function(FUNCTION_LINES + 1, head="async def f():"),
        "class C:\n" + function(FUNCTION_LINES + 1, indent="    "),
        "if True:\n    def outer():\n" + function(FUNCTION_LINES + 1, indent="        "),
    ],
    ids=["function", "async", "method", "nested"],
)
def test_a_long_function_is_found_with_place_and_length(text: str) -> None:
    found = list(findings("service/a.py", text))
    assert any(" f has 41 lines, at most 40" in line for line in found)
    assert all(line.startswith("service/a.py:") for line in found)


def test_functions_and_files_at_the_limit_pass() -> None:
    at_limit = function(FUNCTION_LINES)
    assert list(findings("a.py", "@decorated\n" + at_limit + "x = 1\n" * (FILE_LINES - FUNCTION_LINES - 1))) == []


@pytest.mark.parametrize("name", ["tests/a.py", "service/jobs/scripts/a.lua"])
def test_a_long_file_is_found(name: str) -> None:
    (found,) = findings(name, "x = 1\n" * (FILE_LINES + 1))
    assert found.startswith(f"{name}: 351 lines, at most 350")


def test_every_folder_is_read() -> None:
    read = {path.as_posix() for path in files()}
    for name in (
        "service/settings.py",
        "worker/tasks.py",
        "sampler/loop.py",
        "demo/train.py",
        "benchmarks/released_loops.py",
    ):
        assert any(path.endswith(f"/{name}") for path in read), name
    assert any(path.endswith("/tests/unit/test_sizes.py") for path in read)
