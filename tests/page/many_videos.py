"""Hundreds of completed videos in a second: records written through the store, which share the files of one video."""

from __future__ import annotations

import random
from typing import Any

from service.jobs.model import Job, JobState, Phase
from service.jobs.sampler_settings import SamplerSettings
from tests.factories import make_generation
from tests.page.site import Site

COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle")


def write_videos(site: Site, number: int, *, owner: str, files_of: str) -> list[Job]:
    """The oldest first. Every fifth one failed; `metadata.row` counts them.

    Args:
        files_of: id of a completed video.
    """
    output = site.services.store.get(files_of).output
    jobs, numbers = [], random.Random(1)
    for i in range(number):
        prompt = f"a {COLOURS[i % 5]} {SHAPES[i % 3]} moving right on a teal background"
        sampler = SamplerSettings(name=("iv-mixed", "ddim", "zigzag")[i % 3])
        job = Job.new(make_generation(prompt=prompt, seed=i, sampler=sampler), owner=owner, metadata={"row": str(i)})
        ended: dict[str, Any] = {"started_at": job.created_at, "completed_at": job.created_at, "attempt": 1}
        if i % 5 == 4:
            error = {"code": "not_finite", "message": "Sampling diverged (NaN) at step 7; try another seed."}
            ended |= {"state": JobState.FAILED, "error": error}
        else:
            timings = {Phase.ENCODING: 0.1, Phase.SAMPLING: numbers.uniform(5, 40), Phase.DECODING: 0.4}
            ended |= {"state": JobState.COMPLETED, "output": output, "timings": timings, "step": job.total_steps}
        job = Job.model_validate(job.model_dump() | ended)
        assert site.services.store.restore(job)
        jobs.append(job)
    return jobs
