"""`One machine without containers` of docs/operations.md, as printed, on a Debian with a booted systemd."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.booted_machine import Machine, booted
from tests.debian_root import checkout, debian, require, wheels
from tests.doc_examples import DOCS, example
from tests.factories import PROMPT
from tests.processes import wait_for
from tests.systemd_units import OURS

PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "openssl", "ca-certificates", "procps")
PAGE = DOCS / "operations.md"
SERVICES = [unit.replace("@.", "@demo.") for unit in (*OURS, "ivmix-valkey.service")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    require("mmdebstrap", "systemd-nspawn", "nsenter")
    folder = tmp_path_factory.mktemp("machine")
    with (
        debian(folder / "root", *PACKAGES) as root,
        wheels(folder / "wheels", "constraints-gpu.txt", ".[all]") as found,
    ):
        (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        checkout(root / "root/ivmix")
        with booted(root, {found: "/wheels"}) as machine:
            yield machine


def block(containing: str) -> str:
    return example(PAGE, "bash", containing)


def state(machine: Machine, unit: str, name: str) -> str:
    return machine.run(f"systemctl show --property={name} --value {unit}").strip()


def wait_until_ready(machine: Machine) -> None:
    def is_ready() -> bool | None:
        status = machine.try_run("systemctl show --property=StatusText --value ivmix-worker@demo").stdout.strip()
        api = machine.try_run("exec 3<>/dev/tcp/127.0.0.1/8000").returncode
        return (status == "models loaded" and api == 0) or None

    wait_for(is_ready, timeout_s=180, hint="for the worker and the API")


def submit(machine: Machine, key: str, *options: str) -> str:
    """Make a video with the command line client, as an unprivileged user. Returns its id."""
    command = f'/opt/ivmix/current/bin/ivmix submit --url http://127.0.0.1:8000 --api-key {key} "{PROMPT}"'
    printed = machine.run(f"cd /tmp; runuser -u daemon -- {command} {' '.join(options)}")
    found = re.search(r"video_\w+", printed)
    assert found, printed
    return found[0]


def status(machine: Machine, key: str, video_id: str) -> str:
    client = f"/opt/ivmix/current/bin/ivmix get --url http://127.0.0.1:8000 --api-key {key} {video_id}"
    ran = machine.try_run(client)
    return json.loads(ran.stdout)["status"] if ran.returncode == 0 else "unknown"


def test_install_update_roll_back_back_up_restore_uninstall(machine: Machine) -> None:
    machine.run(block("release=0.2.0"))
    key = re.findall(r"ivmix_[\w-]{40,}", machine.run(block("systemd-sysusers")))[0]
    wait_until_ready(machine)
    first = submit(machine, key, "-o", "/tmp/first.mp4")
    everything_is_restricted(machine)
    hung_and_killed_processes_are_replaced(machine, key)
    update_and_roll_back(machine, key)
    back_up_and_restore(machine, key, first)
    assert '"event"' in machine.run("journalctl --no-pager -o cat -u ivmix-maintenance -u ivmix-api -n 200")
    uninstall(machine)


def everything_is_restricted(machine: Machine) -> None:
    assert machine.run("stat -c %a:%U /var/lib/ivmix /var/lib/ivmix-valkey /etc/ivmix/*").split() == [
        "700:ivmix",
        "700:ivmix-valkey",
        "600:root",
        "600:ivmix-valkey",
    ]
    assert machine.run("ps -o user:20= -C ivmix,valkey-server | sort -u").split() == ["ivmix", "ivmix-valkey"]
    for unit in SERVICES:
        pid = state(machine, unit, "MainPID")
        limits = machine.run(f"grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/{pid}/status").split()[1::2]
        assert limits == ["0000000000000000", "1", "2"], unit


def hung_and_killed_processes_are_replaced(machine: Machine, key: str) -> None:
    """A stopped main loop does not feed the watchdog; a killed worker's job is done by the next."""
    folder = "/run/systemd/system/ivmix-maintenance.service.d"
    machine.run(
        f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=10\\n' > {folder}/quick.conf; systemctl daemon-reload"
    )
    machine.run("systemctl restart ivmix-maintenance")
    pid = state(machine, "ivmix-maintenance", "MainPID")
    machine.run(f"kill -STOP {pid}")
    wait_for(lambda: state(machine, "ivmix-maintenance", "MainPID") not in ("0", pid) or None, timeout_s=120)
    machine.run(f"rm -r {folder}; systemctl daemon-reload")
    video_id = submit(machine, key, "--detach")
    wait_for(lambda: status(machine, key, video_id) == "in_progress" or None, timeout_s=60)
    machine.run(f"kill -KILL {state(machine, 'ivmix-worker@demo', 'MainPID')}")
    wait_for(lambda: status(machine, key, video_id) == "completed" or None, timeout_s=240)


def update_and_roll_back(machine: Machine, key: str) -> None:
    before = [state(machine, unit, "MainPID") for unit in SERVICES]
    machine.run(block("release=0.2.0").replace("release=0.2.0", "release=0.3.0"))
    waiting = [submit(machine, key, "--detach") for _ in range(2)]
    machine.run(block("daemon-reload\nsystemctl restart 'ivmix*'"))
    assert machine.run("readlink /opt/ivmix/current").strip() == "0.3.0"
    assert not set(before) & {state(machine, unit, "MainPID") for unit in SERVICES}
    for video_id in waiting:
        wait_for(lambda video_id=video_id: status(machine, key, video_id) == "completed" or None, timeout_s=240)
    machine.run(block("ln -sfn 0.2.0"))
    wait_until_ready(machine)
    submit(machine, key, "-o", "/tmp/rolled-back.mp4")


def back_up_and_restore(machine: Machine, key: str, kept: str) -> None:
    machine.run(block('queue.tar" ivmix-valkey'))
    wait_until_ready(machine)
    later = submit(machine, key, "-o", "/tmp/later.mp4")
    machine.run(block('xf "$backup/queue.tar"').replace("2026-11-27", machine.run("date +%F").strip()))
    wait_until_ready(machine)
    assert status(machine, key, kept) == "completed"
    assert status(machine, key, later) == "unknown"
    client = f"/opt/ivmix/current/bin/ivmix download --url http://127.0.0.1:8000 --api-key {key} {kept}"
    machine.run(f"{client} -o /tmp/again.mp4; cmp /tmp/first.mp4 /tmp/again.mp4")


def uninstall(machine: Machine) -> None:
    machine.run(block("userdel ivmix-valkey"))
    left = machine.run("find / -xdev -iname '*ivmix*' -not -path '/root/*' -not -path '/proc/*' -not -path '/tmp/*'")
    assert [path for path in left.split() if not path.startswith("/var/backups/ivmix-")] == []
    assert machine.try_run("getent passwd ivmix ivmix-valkey").stdout == ""
    time.sleep(1)
    assert "ivmix" not in machine.run("ps -e -o args= | grep -v grep || true").replace("/root/ivmix", "")
