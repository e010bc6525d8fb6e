from __future__ import annotations

import re
import time
from threading import Lock, Thread

import pytest
from pydantic import ValidationError

from service.ids import new_job_id
from service.jobs.model import ALLOWED_TRANSITIONS, Job, JobState
from service.jobs.sampler_settings import SamplerSettings
from tests.factories import make_generation, make_job


def test_ids_sort_by_creation() -> None:
    ids = [new_job_id() for _ in range(50_000)]
    assert ids == sorted(set(ids))


def test_ids_of_several_threads_sort_by_creation() -> None:
    ids: list[str] = []
    lock = Lock()

    def create() -> None:
        for _ in range(5000):
            with lock:
                ids.append(new_job_id())

    threads = [Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids == sorted(set(ids))
    assert len(ids) == 4 * 5000


def test_an_id_is_a_uuid7_with_its_creation_time() -> None:
    before = time.time_ns() // 1_000_000
    made = new_job_id()
    assert re.fullmatch(r"video_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", made)
    assert before <= int(made.removeprefix("video_")[:12], 16) <= time.time_ns() // 1_000_000


def test_terminal_states_allow_no_transition() -> None:
    ended = {state for state in JobState if state.is_terminal}
    assert ended == {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}
    assert all(not ALLOWED_TRANSITIONS[state] for state in ended)


@pytest.mark.parametrize(
    ("state", "step", "expected"),
    [
        (JobState.QUEUED, 0, 0),
        (JobState.RUNNING, 5, 25),
        (JobState.RUNNING, 20, 99),
        (JobState.COMPLETED, 20, 100),
        (JobState.FAILED, 10, 50),
    ],
)
def test_only_a_completed_job_is_at_100_percent(state: JobState, step: int, expected: int) -> None:
    assert make_job(state=state, step=step).progress == expected


def test_a_job_survives_json() -> None:
    job = Job.new(make_generation(sampler=SamplerSettings(interval=(0.3, 0.9))), metadata={"a": "b"}, user="u")
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_records_name_the_network_only_where_it_is_not_the_default() -> None:
    """Workers of older versions refuse unknown fields, and fingerprints of older checkpoints hash the settings."""
    stored = {name: SamplerSettings(name="ddim", network=name).model_dump() for name in ("video", "image")}
    assert ("network" in stored["video"], stored["image"]["network"]) == (False, "image")
    assert {SamplerSettings.model_validate(stored[name]).network for name in stored} == {"video", "image"}


def test_a_record_of_a_newer_version_can_be_read() -> None:
    assert Job.model_validate(make_job().model_dump() | {"priority": "low"})


@pytest.mark.parametrize("combination", ["IV-IV", "II-VV", "I-V"])
def test_combinations_of_the_paper_are_accepted(combination: str) -> None:
    assert SamplerSettings(combination=combination, order="goback_first").combination == combination


@pytest.mark.parametrize(
    "wrong",
    [
        {"combination": "IVIV"},
        {"combination": "IV-R"},
        {"combination": "IV-IVI"},
        {"combination": "RR-II"},
        {"interval": (0.8, 0.2)},
        {"interval": (0.0, 1.1)},
        {"rho": 0},
        {"image_guidance": (-1, 4)},
        {"video_guidance": (4, float("nan"))},
        {"interval_guidance": -1},
        {"name": "euler"},
        {"gamma": 4},
    ],
    ids=str,
)
def test_invalid_sampler_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SamplerSettings.model_validate(wrong)
