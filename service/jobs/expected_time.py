"""How long a video will take on a worker, judged by the last videos of its model."""

from __future__ import annotations

from statistics import median

from service.jobs.job_list import JobFilter, JobLister
from service.jobs.model import Generation, Job, JobState, Phase, inference_seconds

RECENT = 20  # videos


def expected_seconds(lists: JobLister, generation: Generation) -> float | None:
    """Seconds of inference, without the wait in the queue and the upload; None if the model has completed no video yet.

    Sampling time is proportional to the cost; the median keeps one slow video from deciding.
    """
    wanted = JobFilter(model=generation.model, states=frozenset({JobState.COMPLETED}))
    jobs, _ = lists.page(wanted, limit=RECENT)
    # A resumed one has the time of its last execution only.
    samples = [_sampling_and_rest(job) for job in jobs if job.attempt == 1 and job.timings]
    if not samples:
        return None
    per_cost, rest = zip(*samples, strict=True)
    return median(per_cost) * generation.cost + median(rest)


def _sampling_and_rest(job: Job) -> tuple[float, float]:
    """Seconds of sampling per unit of cost, and of encoding and decoding."""
    sampling = job.timings.get(Phase.SAMPLING, 0.0)
    return sampling / max(job.generation.cost, 1), inference_seconds(job.timings) - sampling
