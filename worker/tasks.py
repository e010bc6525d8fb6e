"""The function that RQ's entries name. `GenerationWorker` runs the job instead; any other RQ worker must fail."""

from __future__ import annotations


def generate(job_id: str) -> bool:
    raise RuntimeError(f"{job_id}: only `ivmix worker` can run it, not an RQ worker of another program")
