"""Feature files that a distance refuses, each with what is wrong and the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.errors import BenchmarkError
from benchmarks.paper.feature_files import read_features


def broken_rows(*rows: int) -> np.ndarray:
    features = np.ones((20, 4), np.float32)
    features[list(rows), 1] = [np.nan, np.inf, -np.inf, *[np.nan] * 17][: len(rows)]
    return features


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int64", "uint8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_plain_real_numbers_are_read(dtype: str, order: str, tmp_path: Path) -> None:
    stored = np.arange(12).reshape(4, 3).astype(dtype, order=order)  # pyright: ignore[reportCallIssue,reportArgumentType]
    np.save(tmp_path / "features.npy", stored)
    features = read_features(tmp_path / "features.npy")
    assert (features.dtype, features.tolist()) == (np.float64, np.arange(12).reshape(4, 3).tolist())


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (broken_rows(7), r"in 1 of 20 rows \(counted from 0: 7\); compute the features of these clips again"),
        (broken_rows(*range(2, 9)), r"in 7 of 20 rows \(counted from 0: 2, 3, 4, 5, 6, \.\.\.\)"),
        (np.full((3, 4), 1e21), r"larger than 1e\+20 in 3 of 3 rows"),
        (np.ones(20), r"shape \(20,\); features must be an array \(n, d\)"),
        (np.ones((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.ones((20, 0)), r"shape \(20, 0\)"),
        (np.ones((1, 4)), "1 rows; a distance needs two or more clips"),
        (np.ones((0, 4)), "0 rows"),
        (np.ones((3, 4), complex), "values of type complex128; features must be real numbers"),
        (np.full((3, 4), "x"), "values of type <U1"),
        (np.ones((3, 4), bool), "values of type bool"),
    ],
)
def test_other_arrays_are_refused(stored: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", stored)
    with pytest.raises(BenchmarkError, match=f"features.npy: .*{message}"):
        read_features(tmp_path / "features.npy")


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run by the file",)


def test_objects_are_refused_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "features.npy", np.array([[Malicious()]] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(BenchmarkError, match=r"contains Python objects, which run code .*numpy.save"):
        read_features(tmp_path / "features.npy")
    assert capsys.readouterr().out == ""


def test_files_that_are_no_array_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", features=np.ones((3, 4)))
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "whole.npy", np.ones((30, 4)))
    whole = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-8])
    (tmp_path / "cut_header.npy").write_bytes(whole[:60])
    (tmp_path / "folder.npy").mkdir()
    for name, message in {
        "archive.npz": "not an .npy file; write features with numpy.save",
        "text.npy": "not an .npy file",
        "empty.npy": "not an .npy file",
        "cut.npy": "a damaged .npy file .*write it again",
        "cut_header.npy": "a damaged .npy file .*write it again",
        "folder.npy": "a folder; give an .npy file of features",
        "missing.npy": "no such file; give an .npy file of features",
    }.items():
        with pytest.raises(BenchmarkError, match=f"{name}: {message}"):
            read_features(tmp_path / name)
