"""deploy/systemd: the units by systemd's own checks, and against the code that they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app as cli
from tests.container_checks import HAVE_HEARTBEAT, problems, settings_of
from tests.containers import ROOT, compose
from tests.doc_examples import DOCS
from tests.systemd_units import OURS, SYSTEMD, UNITS, container, copies, options, seconds

SERVICES = [unit for unit in UNITS if unit.endswith(".service")]
EXPOSED_AT_MOST = 20  # tenths, of `systemd-analyze security`: 100 without any restriction
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze, so systemd itself reads no unit"
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    return copies(tmp_path / "units")


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"}  # the colon: and systemd's units, which ours name
    command = ["systemd-analyze", "--no-pager", "--man=no", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_systemd
def test_systemd_accepts_every_unit(units: Path) -> None:
    ran = analyze(units, "verify", *sorted(str(path) for path in units.glob("ivmix*")))
    assert (ran.returncode, ran.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("KillMode=mixed", "KillMod=mixed"), ("=notify", "=notified"), ("bin/ivmix", "bin/iv"), ("=mixed", "=mix")],
)
def test_systemd_sees_what_is_wrong(units: Path, right: str, wrong: str) -> None:
    unit = units / "ivmix-worker@demo.service"
    assert right in unit.read_text()
    unit.write_text(unit.read_text().replace(right, wrong))
    assert wrong.removesuffix("=mixed").strip("=") in analyze(units, "verify", str(unit)).stderr


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_services_are_restricted(units: Path, unit: str) -> None:
    name = unit.replace("@.", "@demo.")
    ran = analyze(units, "security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", name)
    assert ran.returncode == 0, ran.stdout.splitlines()[-1]


@needs_systemd
def test_a_service_without_restrictions_is_seen(units: Path) -> None:
    unit = units / "ivmix-api.service"
    unit.write_text(re.sub(r"NoNewPrivileges=.*(?=\n\[Install)", "", unit.read_text(), flags=re.DOTALL))
    ran = analyze(units, "security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", unit.name)
    assert ran.returncode != 0


@pytest.mark.parametrize("unit", OURS)
def test_units_agree_with_the_code(unit: str) -> None:
    assert problems(container(unit)) == []
    program = container(unit).arguments[0]
    # Only a main loop that reports to systemd may have a watchdog.
    assert (options(unit)["Type"] == ["notify"]) == ("WatchdogSec" in options(unit)) == (program in HAVE_HEARTBEAT)
    assert options(unit)["User"] == ["ivmix"]
    assert options(unit)["EnvironmentFile"][0] == "/etc/ivmix/ivmix.env"
    assert options(unit)["Restart"] == ["always"]


def test_there_is_a_unit_for_every_process_of_compose() -> None:
    services = compose()["services"].keys() - {"s3", "bucket", "fetch", "worker-demo"}
    assert {f"ivmix-{name}" for name in services} == {unit.split(".")[0].rstrip("@") for unit in SERVICES}
    for unit in SERVICES:
        assert options(unit, "Install") == {"WantedBy": ["ivmix.target"]}
        assert options(unit, "Unit")["PartOf"] == ["ivmix.target"]
        assert {"MemoryMax", "TasksMax", "TimeoutStopSec"} <= options(unit).keys()


def test_only_the_parent_of_a_worker_gets_the_signal_and_has_time_to_hand_back_its_job() -> None:
    worker = "ivmix-worker@.service"
    assert options(worker)["KillMode"] == ["mixed"]
    assert seconds(worker, "TimeoutStopSec") >= 120 > 2 * settings_of(container(worker)).stop_grace_s


def test_the_printed_commands_are_commands() -> None:
    """A share of tests/integration/test_one_machine.py, which runs them."""
    page = (DOCS / "operations.md").read_text()
    section = page.partition("## One machine without containers")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 9
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for named in re.findall(r"deploy/\S+", block):
            assert list(ROOT.glob(named)), named
        for name in re.findall(r"ivmix-(?:api|valkey|webhooks|maintenance|worker@)(?=\w*\b)", block):
            assert any(unit.startswith(name) for unit in UNITS), name
        for command in re.findall(r"^ivmix-admin ([a-z ]+)\b", block, re.MULTILINE):
            ran = CliRunner().invoke(cli, [*command.split(), "--help"])
            assert ran.exit_code == 0, command


def test_every_user_of_a_unit_is_created() -> None:
    created = re.findall(r"^u (\S+) - ", (SYSTEMD / "ivmix.sysusers").read_text(), re.MULTILINE)
    assert {options(unit)["User"][0] for unit in SERVICES} == set(created)
