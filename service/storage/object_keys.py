"""Object keys of a job's files in the storage."""

from __future__ import annotations

VIDEOS = "videos/"
CHECKPOINTS = "checkpoints/"
REFERENCES = "references/"
FOLDERS = (VIDEOS, CHECKPOINTS, REFERENCES)  # every key begins with one of them; setting_types.py reserves their names


def is_lasting(key: str) -> bool:
    """Whether the object is kept as long as its video."""
    return key.startswith(VIDEOS)


def videos(job_id: str) -> str:
    """Prefix of everything that any execution of this job has stored."""
    return f"{VIDEOS}{job_id}/"


def execution(job_id: str, execution_id: str) -> str:
    """Prefix of one execution's files. The job record points to the execution that won."""
    return f"{videos(job_id)}{execution_id}/"


def checkpoint(job_id: str) -> str:
    """Key of the job's latest checkpoint, which all its executions share."""
    return f"{CHECKPOINTS}{job_id}.safetensors"


def reference(job_id: str) -> str:
    """Key of the picture or clip that the job starts from."""
    return f"{REFERENCES}{job_id}"
