"""Reading of feature files: .npy arrays (n, d), a row per clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.errors import BenchmarkError

LARGEST = 1e20  # the kernel takes the sixth power and its spread the twelfth, which stay far within float64
NAMED_ROWS = 5


def read_features(path: Path) -> NDArray[np.float64]:
    """Features (n, d) of at least two clips, as float64.

    Raises:
        BenchmarkError: the file is missing, is no plain .npy array of real numbers (n, d), or has values that are not
            finite.
    """
    stored = _open(path)
    if stored.dtype.kind not in "fiu":
        raise BenchmarkError(f"{path}: values of type {stored.dtype}; features must be real numbers, such as float32")
    if stored.ndim != 2 or stored.shape[1] == 0:
        raise BenchmarkError(f"{path}: shape {stored.shape}; features must be an array (n, d), one row per clip")
    if len(stored) < 2:
        raise BenchmarkError(f"{path}: {len(stored)} rows; a distance needs two or more clips")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(stored, dtype=np.float64)
    wrong = np.flatnonzero(~(np.abs(features) < LARGEST).all(1))  # NaN is not less than anything
    if len(wrong):
        rows = ", ".join(map(str, wrong[:NAMED_ROWS])) + (", ..." if len(wrong) > NAMED_ROWS else "")
        raise BenchmarkError(
            f"{path}: NaN, infinite or larger than {LARGEST:g} in {len(wrong)} of {len(features)} rows (counted from "
            f"0: {rows}); compute the features of these clips again"
        )
    return features


def _open(path: Path) -> np.ndarray:
    """Maps the file; objects, which would run code when they are read, are refused."""
    if not path.is_file():
        raise BenchmarkError(
            f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give an .npy file of features"
        )
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
    except ValueError as e:
        raise BenchmarkError(f"{path}: not an .npy file; write features with numpy.save") from e
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as e:
        if "object" in str(e).lower():
            raise BenchmarkError(
                f"{path}: contains Python objects, which run code when they are read; save a plain array instead: "
                "numpy.save(path, numpy.asarray(features, dtype='float32'))"
            ) from e
        raise BenchmarkError(f"{path}: a damaged .npy file (format {version}): {e}; write it again") from e
    except EOFError as e:
        raise BenchmarkError(f"{path}: ends too early; write it again") from e
