"""Jobs as the Video objects that clients get."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.jobs.model import Job, JobError, JobState, Phase
from service.settings import Settings
from service.storage import FileStorage
from service.wire.video import Renderer, Video
from tests.factories import make_job, make_output


def video(job: Job, **settings: str) -> Video:
    return Renderer(Settings.model_validate(settings), FileStorage(Path("nowhere"))).video(job)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (JobState.QUEUED, "queued"),
        (JobState.RUNNING, "in_progress"),
        (JobState.COMPLETED, "completed"),
        (JobState.FAILED, "failed"),
        (JobState.CANCELLED, "failed"),
    ],
)
def test_only_the_four_states_of_openai_are_shown(state: JobState, status: str) -> None:
    assert video(make_job(state=state)).status == status


def test_a_cancelled_video_has_the_error_code_cancelled() -> None:
    shown = video(make_job(state=JobState.CANCELLED, completed_at=5.9))
    assert shown.error is not None
    assert shown.error.code == "cancelled"
    assert (shown.cancelled_at, shown.completed_at) == (5, 5)


def test_a_failed_video_has_the_error_of_its_job() -> None:
    shown = video(make_job(state=JobState.FAILED, error=JobError(code="timeout", message="Too slow.")))
    assert shown.error is not None
    assert (shown.error.code, shown.error.message) == ("timeout", "Too slow.")


def test_stage_durations_use_the_keys_of_benchmark_clients() -> None:
    job = make_job(
        state=JobState.COMPLETED,
        created_at=100.0,
        started_at=102.5,
        output=make_output(),
        timings={Phase.ENCODING: 0.5, Phase.SAMPLING: 3.0, Phase.DECODING: 1.0, Phase.UPLOADING: 0.25},
    )
    shown = video(job)
    assert shown.queue_time_s == 2.5
    assert shown.inference_time_s == 4.5
    assert shown.stage_durations == {
        "text_encode_gen_ms": 500,
        "denoise_gen_ms": 3000,
        "vae_decode_gen_ms": 1000,
        "upload_ms": 250,
    }


def test_a_url_needs_a_public_base_url() -> None:
    job = make_job(state=JobState.COMPLETED, output=make_output())
    assert video(job).url is None
    assert video(job, public_base_url="https://v.example/").url == f"https://v.example/v1/videos/{job.id}/content"
    assert video(make_job(), public_base_url="https://v.example").url is None
