"""The instrument itself: what it counts, and that it refuses to time what computes something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_arms import Arm, ours, released
from benchmarks.gpu_measure import Unsound, gate, one_step
from benchmarks.gpu_networks import Family, Pair, flops, pair
from worker.networks.optimise.weight_memory import resident_bytes, shared_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks() -> Pair:
    return pair("animatediff", "tiny", CPU, torch.float32)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("family", "tflop"), [("animatediff", 7913), ("modelscope", 8859)])
def test_a_clip_of_full_size_is_as_much_work_as_was_counted_elsewhere(family: Family, tflop: float) -> None:
    """Counted 2026-11 by another program, from the papers' configurations; networks of another size miss it by far."""
    assert flops(family, "full") / 1e12 == pytest.approx(tflop, rel=1e-3)


def test_image_and_video_model_share_weights_as_in_the_worker(networks: Pair) -> None:
    for each in (networks, networks.copy()):
        assert shared_bytes(each.image, each.video) == resident_bytes(each.image)
    assert shared_bytes(networks.image, networks.copy().image) == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize("family", ["animatediff", "modelscope"])
def test_our_loop_passes_the_gate(family: Family) -> None:
    own = pair(family, "tiny", CPU, torch.float32)
    errors = gate(own, [released(own, ""), ours(own, "")])
    assert errors["A"] == {"image call": 0, "video call": 0, "3 steps": 0}  # it is what it is compared with
    assert 0 < max(errors["B"].values()) < 1e-5  # other kernels, so not the very same run


@pytest.mark.slow
def test_half_precision_is_allowed_its_rounding_and_no_more(networks: Pair) -> None:
    half = networks.copy(torch.bfloat16)
    plain = released(half, "")
    errors = gate(half, [plain])["A"]
    assert all(1e-4 < error < 0.1 for error in errors.values())
    worse = replace(plain, name="worse", calls={**plain.calls, "video": lambda both: 1.1 * plain.calls["video"](both)})
    with pytest.raises(Unsound, match="arm worse, video call"):
        gate(half, [plain, worse])


def broken(networks: Pair, spread: float) -> Arm:
    def run(steps: int) -> Iterator[Tensor]:
        return (spread * torch.randn_like(networks.latents) for _ in range(steps))

    return replace(released(networks, ""), name="broken", run=run)


@pytest.mark.sample(1)
@pytest.mark.parametrize("spread", [float("nan"), 0.01, 100.0])
def test_latents_that_are_not_of_order_one_are_not_timed(networks: Pair, spread: float) -> None:
    with pytest.raises(Unsound, match="standard deviation"):
        gate(networks, [broken(networks, spread)])


def test_an_arm_that_ends_elsewhere_is_not_timed(networks: Pair) -> None:
    with pytest.raises(Unsound, match="arm broken, 3 steps"):
        gate(networks, [released(networks, ""), broken(networks, 0.7)])


def test_waits_are_counted(networks: Pair) -> None:
    """28 numbers an outer step were counted in the released code, too, by other means (2026-11)."""
    assert one_step(released(networks, ""), CPU)["host_waits_per_step"] == 28
    assert one_step(ours(networks, ""), CPU)["host_waits_per_step"] == 0
