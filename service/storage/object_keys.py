"""Where the files of a job lie in the storage. Knows names; nothing of what is in the files."""

from __future__ import annotations

VIDEOS = "videos/"


def videos(job_id: str) -> str:
    """Everything that executions of this job ever stored lies below."""
    return f"{VIDEOS}{job_id}/"


def execution(job_id: str, execution_id: str) -> str:
    """Each execution writes under its own name, the record points at the winner's."""
    return f"{videos(job_id)}{execution_id}/"


def checkpoint(job_id: str) -> str:
    """One per job: whoever works on it, its latest state is worth most."""
    return f"checkpoints/{job_id}.safetensors"
