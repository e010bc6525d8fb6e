"""Filtered lists of jobs, page by page, answered from indexes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from redis import Redis

from service.jobs.job_record import view_job
from service.jobs.keys import DELETED, INDEX, INDEXED, MODEL_INDEX, STATE_INDEX, metadata_index, owner_index
from service.jobs.model import Job, JobState
from service.redis_scripts import UntypedRedis, load_script

Order = Literal["asc", "desc"]

READ_AT_ONCE = 50  # records; bounds how long one script blocks Redis


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list shows; an omitted condition is none.

    Attributes:
        created_after: unix seconds; jobs created then or later.
        created_before: unix seconds; jobs created earlier.
    """

    owner: str | None = None
    model: str | None = None
    states: frozenset[JobState] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    created_after: float | None = None
    created_before: float | None = None

    def matches(self, job: Job) -> bool:
        """Whether the job meets the conditions that can differ from the indexes."""
        return (
            (not self.states or job.state in self.states)
            and self.model in (None, job.generation.model)
            and self.metadata.items() <= job.metadata.items()
        )

    @property
    def indexes(self) -> list[list[str]]:
        """One list of keys per condition; a job must be in at least one of each."""
        conditions = [[INDEX if self.owner is None else owner_index(self.owner)]]
        if self.model is not None:
            conditions.append([f"{MODEL_INDEX}{self.model}"])
        if self.states:
            conditions.append([f"{STATE_INDEX}{state}" for state in sorted(self.states)])
        return conditions + [[metadata_index(*pair)] for pair in self.metadata.items()]

    def bounds(self, *, after: str | None, is_descending: bool) -> tuple[str, str]:
        """Return where the list starts and stops, as ZRANGE BYLEX takes them."""
        lowest = "-" if self.created_after is None else f"[{_first_id(self.created_after)}"
        highest = "+" if self.created_before is None else f"({_first_id(self.created_before)}"
        start, stop = (highest, lowest) if is_descending else (lowest, highest)
        if after is None or (start not in "-+" and (after > start[1:]) == is_descending):
            return start, stop
        return f"({after}", stop


class JobLister:
    def __init__(self, redis: Redis) -> None:
        self._redis: UntypedRedis = redis
        self._list_script = load_script(redis, "service.jobs", "list")

    def page(
        self, wanted: JobFilter, *, limit: int, order: Order = "desc", after: str | None = None
    ) -> tuple[list[Job], bool]:
        """Return one page of the matching jobs, and whether more follow.

        Args:
            after: id after which the page starts; it need not exist any more.
        """
        found: list[Job] = []
        for job in self._walk(wanted, limit + 1, after, is_descending=order == "desc"):
            found.append(job)
            if len(found) > limit:
                return found[:limit], True
        return found, False

    def is_cursor(self, job_id: str, owner: str | None) -> bool:
        """Return whether a list of this owner can go on after the id: it names a job, or one deleted within a day."""
        index = INDEX if owner is None else owner_index(owner)
        return any(self._redis.zscore(key, job_id) is not None for key in (index, DELETED))

    def is_model_used(self, model: str) -> bool:
        """Return whether there may be jobs of a model, which this server need not offer any more."""
        return bool(self._redis.exists(f"{MODEL_INDEX}{model}")) or not self._redis.exists(INDEXED)

    def _walk(self, wanted: JobFilter, limit: int, after: str | None, *, is_descending: bool) -> Iterator[Job]:
        """Yield the matching jobs, with as many calls of the script as the caller needs."""
        start, stop = wanted.bounds(after=after, is_descending=is_descending)
        request: dict[str, Any] = {
            "stop": stop,
            "is_descending": is_descending,
            "indexes": wanted.indexes,
            "limit": min(limit, READ_AT_ONCE),
            "states": sorted(wanted.states),
            "model": wanted.model or False,
            "metadata": wanted.metadata,
        }
        is_at_end = False
        while not is_at_end:
            last, is_at_end, *entries = self._list_script([], [json.dumps(request | {"start": start})])
            start = f"({last.decode()}"
            for job_id, record in zip(entries[::2], entries[1::2], strict=True):
                job = view_job(job_id.decode(), dict(zip(record[::2], record[1::2], strict=True)))
                if job is not None and wanted.matches(job):
                    yield job


def _first_id(at: float) -> str:
    """Return the lowest id of a job that is created at this time (unix seconds)."""
    return f"video_{math.ceil(round(at * 1000, 2)):012x}"
