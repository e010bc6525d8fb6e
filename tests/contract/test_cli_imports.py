"""`ivmix --help` answers at once: what takes time to import is imported when a command begins its work."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "av", "numpy", "fastapi", "uvicorn", "boto3", "botocore", "redis", "rq")
WIDE = ("pydantic", "httpx2", "structlog", "prometheus_client")

HELP = """
import sys
from service.cli.main import main
sys.argv = ["ivmix", *{arguments!r}]
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
"""


def loaded_by(program: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh interpreter has after the program."""
    code = f"{program}\nimport sys\nprint()\nprint(*[name for name in {names!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1].split()


def test_a_loaded_module_is_seen() -> None:
    assert loaded_by("import redis", HEAVY) == ["redis"]


def test_importing_the_commands_loads_no_library_but_their_parser() -> None:
    assert loaded_by("import service.cli.main", HEAVY + WIDE) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=str)
def test_answers_of_the_parser_load_no_other_library(arguments: list[str]) -> None:
    assert loaded_by(HELP.format(arguments=arguments), HEAVY + WIDE) == []


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "command",
    [
        "up",
        "generate",
        "submit",
        "keys create",
        "models",
        "models add",
        "models fetch",
        "recover",
        "worker",
        "bench",
        "bench distance",
    ],
)
def test_help_of_a_command_loads_nothing_that_does_its_work(command: str) -> None:
    assert loaded_by(HELP.format(arguments=[*command.split(), "--help"]), HEAVY) == []
