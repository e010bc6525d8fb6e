"""Which rows of a network call each rank computes. Knows nothing of processes and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Share:
    """What one rank computes of a call.

    Args:
        rank: from 0.
        rows: of the network's input.
        branches: of guidance, whose texts belong to the rows.
        returns: whether this rank hands in the result; the others of its unit have the same one.
    """

    rank: int
    rows: slice
    branches: slice
    returns: bool


def shares(rows: int, branches: int, ranks: int, *, per_unit: int = 1, by_row: bool) -> list[Share]:
    """The shares of a call, rank 0's first. Ranks that have nothing to do are left out.

    Each branch of guidance goes to other ranks. If rows do not see each other, those of a branch are spread over all
    of its ranks, as evenly as possible; otherwise its first unit computes them.

    Args:
        rows: of all branches, those of a branch together.
        branches: 1 or 2.
        ranks: 2 or 4.
        per_unit: so many ranks in a row work on the same rows (sequence parallelism).
        by_row: whether the rows of a branch are frames of one clip that the network takes by themselves.
    """
    units = ranks // per_unit
    if units < branches:
        return _of_unit(0, per_unit, slice(0, rows), slice(0, branches))
    found: list[Share] = []
    of_branch, units_of_branch = rows // branches, units // branches
    for branch in range(branches):
        parts = min(units_of_branch, of_branch) if by_row else 1
        bounds = [branch * of_branch + of_branch * i // parts for i in range(parts + 1)]
        for i, (begin, end) in enumerate(pairwise(bounds)):
            unit = branch * units_of_branch + i
            found += _of_unit(unit, per_unit, slice(begin, end), slice(branch, branch + 1))
    return found


def _of_unit(unit: int, per_unit: int, rows: slice, branches: slice) -> list[Share]:
    first = unit * per_unit
    return [Share(rank, rows, branches, returns=rank == first) for rank in range(first, first + per_unit)]
