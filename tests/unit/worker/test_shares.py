"""Who computes which rows of a network call."""

from __future__ import annotations

from itertools import product

import pytest

from worker.child.ranks.shares import shares


@pytest.mark.parametrize(
    ("rows", "branches", "ranks", "per_unit", "by_row"),
    [
        (branches * frames, branches, ranks, per_unit, by_row)
        for frames, branches, (ranks, per_unit), by_row in product(
            (1, 2, 3, 5, 16), (1, 2), ((2, 1), (2, 2), (4, 1), (4, 2)), (True, False)
        )
    ],
)
def test_every_row_is_computed_and_returned_once(
    rows: int, branches: int, ranks: int, per_unit: int, by_row: bool
) -> None:
    found = shares(rows, branches, ranks, per_unit=per_unit, by_row=by_row)
    returned = [row for share in found if share.returns for row in range(rows)[share.rows]]
    assert returned == list(range(rows))
    assert found[0].rank == 0
    assert found[0].returns
    assert len({share.rank for share in found}) == len(found)
    for share in found:  # the rows of a share are those of its branches
        of_branch = rows // branches
        touched = {row // of_branch for row in range(rows)[share.rows]}
        assert touched == set(range(branches)[share.branches])


def test_branches_go_to_two_ranks_and_frames_to_all_of_them() -> None:
    def rows(*given: int, by_row: bool) -> dict[int, slice]:
        return {share.rank: share.rows for share in shares(*given, by_row=by_row)}

    assert rows(2, 2, 2, by_row=False) == {0: slice(0, 1), 1: slice(1, 2)}
    assert rows(2, 2, 4, by_row=False) == {0: slice(0, 1), 2: slice(1, 2)}
    assert rows(1, 1, 4, by_row=False) == {0: slice(0, 1)}
    assert rows(16, 2, 2, by_row=True) == {0: slice(0, 8), 1: slice(8, 16)}
    assert rows(10, 2, 4, by_row=True) == {0: slice(0, 2), 1: slice(2, 5), 2: slice(5, 7), 3: slice(7, 10)}
    assert rows(8, 1, 4, by_row=True) == {n: slice(2 * n, 2 * n + 2) for n in range(4)}


def test_ranks_of_a_unit_compute_the_same_and_the_first_returns_it() -> None:
    found = shares(2, 2, 4, per_unit=2, by_row=False)
    assert [(share.rank, share.rows.start, share.returns) for share in found] == [
        (0, 0, True),
        (1, 0, False),
        (2, 1, True),
        (3, 1, False),
    ]
