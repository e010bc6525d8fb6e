"""Plans as text: the table for readers, and the form that a checkpoint hashes."""

from __future__ import annotations

import hashlib

import pytest

from sampler import NoiseSchedule, Plan, ddim_plan, free_init_plan, fused_plan, mixed_plan, official_plan, zigzag_plan

SD = NoiseSchedule.scaled_linear(0.00085, 0.012)
PRINTED = [
    "f774105ed3a35373",
    "1df81f0b34c8ebe4",
    "80dac4553378e9a1",
    "fbb0aa69a9b88c1a",
    "ae6047d1d31a8d15",
    "366d7a8738b2604c",
]


def test_printed_form_of_a_plan_is_unchanged_since_the_first_checkpoints() -> None:
    """A checkpoint's fingerprint hashes it: a change would orphan every checkpoint of a running fleet."""
    plans = (
        ddim_plan(SD, 10),
        mixed_plan(SD, 10),
        fused_plan(SD, 5),
        zigzag_plan(SD, 7),
        official_plan("videocrafter", SD, 7),
        free_init_plan(mixed_plan(SD, 6, combination="RR-VV", order="goback_first"), SD),
    )
    assert [hashlib.sha256(repr(plan).encode()).hexdigest()[:16] for plan in plans] == PRINTED


TABLES = {
    "mixed": (
        mixed_plan(SD, 50, interval=(0.2, 1.0), image_guidance=(6, 2)),
        """\
steps    count  kind      moves                guidance                              calls a step
0-9, 49  11     V         D_V                  +7.5                                  1 V
10-48    39     IV-IV, V  D_I D_V N_I N_V D_V  +4.86..+2.05 +4 -4.86..-2.05 -4 +7.5  2 I + 3 V
total    50                                                                          78 I + 128 V""",
    ),
    "noise": (
        mixed_plan(SD, 6, combination="RR-VV", order="goback_first"),
        """\
steps  count  kind      moves            guidance    calls a step
0-1    2      V         D_V              +7.5        1 V
2-5    4      RR-VV, V  R R D_V D_V D_V  +4 +4 +7.5  3 V
total  6                                             14 V""",
    ),
    "official": (
        official_plan("videocrafter", SD, 12),
        """\
steps                   count  kind      moves                    guidance        calls a step
0-1, 3-4, 6-7, .. 9-10  8      IV-IV, V  D_I D_V N_I N_V S_V      +4 +4 -4 -4 +9  2 I + 3 V
2, 5, 8                 3      VV-VV, V  D_V D_V N_V N_V S_V      +4 +4 -4 -4 +9  5 V
11                      1      VV-VV, V  D_V (D_V) (N_V) N_V S_V  +4 +4 -4 -4 +9  3 V
total                   12                                                        16 I + 42 V
(in brackets: changes nothing, so its network is not called)""",
    ),
    "free init": (
        free_init_plan(fused_plan(SD, 2, interval=(0, 0.5)), SD, 2),
        """\
steps  count  kind                 moves           guidance  calls a step
0      1      fused V+I            D_V+I           +15.5&+8  1 I + 1 V
1, 3   2      V                    D_V             +7.5      1 V
2      1      FreeInit, fused V+I  FreeInit D_V+I  +15.5&+8  1 I + 1 V
total  4                                                     2 I + 4 V""",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_printed_plan_has_a_row_for_every_kind_of_step(name: str) -> None:
    plan, expected = TABLES[name]
    assert str(plan) == expected


def test_empty_plan_can_be_printed() -> None:
    assert "total" in str(Plan(()))
    assert "nothing" in str(Plan(((),)))
