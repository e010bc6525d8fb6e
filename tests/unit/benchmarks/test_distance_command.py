"""`ivmix bench distance`: what it prints, and its errors."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.averagings import averaging_of
from benchmarks.paper.distance_command import measure
from benchmarks.paper.distances import averaged_frechet, frechet, kernel_distance
from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.feature_files import read_features
from benchmarks.paper.protocols import protocol
from service.errors import InvalidParameter
from tests.commands import ivmix_here


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    generator = np.random.default_rng(0)
    paths = tmp_path / "real.npy", tmp_path / "fake.npy"
    for path, rows in zip(paths, (70, 40), strict=True):
        np.save(path, generator.standard_normal((rows, 6)).astype(np.float32))
    return paths


def test_the_command_prints_json(files: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "service.cli", "bench", "distance", *files, "--protocol", "chronomagic-1649"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == measure(*files, "chronomagic-1649")


def test_an_error_is_one_sentence(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(files[1], np.full((40, 6), np.nan))
    ran = ivmix_here("bench", "distance", *map(str, files), cwd=tmp_path, environment={})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"ivmix: {files[1]}: NaN, infinite or larger")
    assert ran.stderr.count("\n") == 1


def test_an_installation_without_the_benchmarks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    ran = ivmix_here("bench", "distance", "a.npy", "b.npy", cwd=tmp_path, environment={})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "ivmix: the installed package has no benchmarks; run this command from a clone with `make`\n"


def test_an_installation_without_numpy_says_so(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("distances", "averagings", "feature_files"):
        monkeypatch.delitem(sys.modules, f"benchmarks.paper.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    ran = ivmix_here("bench", "distance", *map(str, files), cwd=tmp_path, environment={})
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "ivmix: this command needs numpy; install 'ivmix[bench]'\n"


def test_the_report_is_what_the_distances_are(files: tuple[Path, Path]) -> None:
    real, fake = map(read_features, files)
    report = measure(*files, "chronomagic-150")
    kernel = kernel_distance(real, fake)
    averaged, caps = averaged_frechet(real, fake, averaging_of(protocol("chronomagic-150")))
    assert report | {"protocol": None} == {
        "fd": frechet(real, fake),
        "fd_protocol": averaged,
        "kvd": kernel.value,
        "kvd_spread": kernel.spread,
        "n_real": 70,
        "n_fake": 40,
        "protocol": None,
    }
    used = report["protocol"]
    assert (used["name"], used["covariance"]) == ("chronomagic-150", "population")
    assert used["seeds"] == [12, 22, 32, 42]
    assert [(each["cap"], each["n_real"], each["n_fake"], each["all_rows"]) for each in used["caps"][:3]] == [
        (32, 32, 32, False),
        (64, 64, 40, False),
        (128, 70, 40, True),
    ]
    assert [each["fd"] for each in used["caps"]] == [each.fd for each in caps]


@pytest.mark.parametrize("value", [0.0, 1e-20, 0.9e20])
def test_extreme_features_have_finite_distances(value: float, files: tuple[Path, Path]) -> None:
    generator = np.random.default_rng(1)
    for path in files:
        np.save(path, value * generator.uniform(-1, 1, (30, 6)))
    report = measure(*files, "chronomagic-150")
    assert all(np.isfinite(report[name]) for name in ("fd", "fd_protocol", "kvd", "kvd_spread"))


def test_the_covariance_is_the_protocols(files: tuple[Path, Path]) -> None:
    real, fake = map(read_features, files)
    report = measure(*files, "ucf-101-lavie")
    assert report["fd"] == frechet(real, fake)
    assert report["fd_protocol"] == frechet(real, fake, unbiased_covariance=True)
    assert report["protocol"]["covariance"] == "unbiased"


def test_unknown_protocols_and_other_widths_are_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidParameter, match=r"There is no benchmark 'fvd'; there are .*chronomagic-150"):
        measure(*files, "fvd")
    np.save(files[1], np.ones((40, 7)))
    with pytest.raises(BenchmarkError, match=r"real.npy has 6 features per clip and .*fake.npy has 7"):
        measure(*files, "msr-vtt")
