"""Seconds from the start of a worker's child to its models, and from the death of one child to the models of the next.

`python -m benchmarks.start [--before CHECKOUT]`. The models are the demo pair and a pair of full size with random
weights in a temporary folder: 3 GB on disk, up to 12 GB of memory. Checkouts take turns. On a machine that does other
things too, compare CPU seconds. Nothing is dropped from the page cache, so the files are not read from the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.full_size_model import save_full_size_model
from service.settings import MODELS_FILE

CHILDREN = 2  # the first one, and one that replaces it
COLUMNS = ("wall s", "CPU s", "peak RSS MB", "PSS MB", "fork server PSS MB")

# Runs in either checkout, so that it knows nothing that only one of them has.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from service.settings import load_settings
from worker.parent.child_process import ChildProcess

def fields(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None

def family():
    known = {int(p.name): f for p in Path("/proc").glob("[0-9]*") if (f := fields(p.name))}
    found = {os.getpid()}
    while more := {pid for pid, f in known.items() if int(f[1]) in found} - found:
        found |= more
    return {pid: known[pid] for pid in found}

def cpu_s():
    return sum(sum(map(int, f[11:15])) for f in family().values()) / os.sysconf("SC_CLK_TCK")

def megabytes(pid, file, key):
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

child = ChildProcess(load_settings(), sys.argv[1])
for _ in range(int(sys.argv[2])):
    began, cpu = time.perf_counter(), cpu_s()
    child.ensure(lambda: True)
    wall, cpu = time.perf_counter() - began, cpu_s() - cpu
    pid = child._control.process.pid
    parent = int(fields(pid)[1])
    server = 0 if parent == os.getpid() else megabytes(parent, "smaps_rollup", "Pss:")
    print(json.dumps([wall, cpu, megabytes(pid, "status", "VmHWM"), megabytes(pid, "smaps_rollup", "Pss:"), server]))
    os.kill(pid, signal.SIGKILL)
    while child.is_loaded:
        time.sleep(0.01)
child.kill()
"""


def measure(checkout: Path, model: str, registry: Path, data: Path) -> list[list[float]]:
    """COLUMNS of each child."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"IVMIX_MODELS_FILE": str(registry), "IVMIX_DATA_DIR": str(data)}
    command = [sys.executable, "-c", PROGRAM, model, str(CHILDREN)]
    ran = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, to be compared with this one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", default="demo,full-size", help="demo, full-size or both (the default)")
    options = parser.parse_args()
    checkouts = {"this": Path(__file__).parents[1]} | ({"before": options.before.resolve()} if options.before else {})
    found: dict[tuple[str, int, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="ivmix-start-") as folder:
        models, data = options.models.split(","), Path(folder, "data")
        data.mkdir()
        registries: dict[str, Path] = {"demo": MODELS_FILE}
        if "full-size" in models:
            registries["full-size"] = save_full_size_model(Path(folder, "model"))
        for model in models:
            for _ in range(options.runs):
                for name, checkout in checkouts.items():
                    for number, row in enumerate(measure(checkout, model, registries[model], data)):
                        found.setdefault((model, number, name), []).append(row)
    print(f"| model | child | checkout | {' | '.join(COLUMNS)} |\n|{'---|' * (3 + len(COLUMNS))}")
    for (model, number, name), rows in sorted(found.items(), key=lambda item: item[0][:2]):
        print(f"| {model} | {'next' if number else 'first'} | {name} | {' | '.join(_medians(rows))} |")


def _medians(rows: list[list[Any]]) -> list[str]:
    return [
        f"{median(column):.{2 if column_name.endswith(' s') else 0}f}"
        for column_name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)
    ]


if __name__ == "__main__":
    main()
