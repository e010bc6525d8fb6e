"""Four processes that compute each clip together: frames in four parts, and Wan's tokens in two for each branch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from tests.tiny_models import save_model
from tests.tiny_wan import save_wan
from tests.unit.worker.test_ranks import CPU, IV_MIXED, request
from worker.child.engine import Engine
from worker.child.ranks.leader import Ranks

pytestmark = pytest.mark.slow  # 3 processes import torch


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks([CPU] * 4, log_format="text") as ranks:
        yield ranks


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Fewer rows and tokens in a call round differently; random networks make that larger."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("guidance_scale", "frames"), [(3, 5), (1, 5), (3, 1)])
def test_frames_in_parts_are_those_of_one_process(
    ranks: Ranks, tmp_path: Path, guidance_scale: float, frames: int
) -> None:
    entry = save_model("animatediff", tmp_path)
    wanted = request(entry, sampler=IV_MIXED, guidance_scale=guidance_scale, num_frames=frames)
    assert_close(*(Engine(entry, on).sample(wanted).latents for on in (ranks, CPU)))


def test_wan_on_two_ranks_for_each_branch_is_that_of_one_process(ranks: Ranks, tmp_path: Path) -> None:
    entry = save_wan(tmp_path)
    ranks.per_unit = 2
    try:
        for sampler in ({"name": "ddim"}, {"name": "iv-mixed"}):
            wanted = request(entry, sampler=sampler, num_frames=9)
            assert_close(*(Engine(entry, on).sample(wanted).latents for on in (ranks, CPU)))
    finally:
        ranks.per_unit = 1
