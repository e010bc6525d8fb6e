"""Builds the indexes of filtered lists for records that older versions have written."""

from __future__ import annotations

import logging

from redis import Redis

from service.jobs.keys import INDEX, INDEXED
from service.jobs.store import JobStore
from service.redis_records import read_page
from service.redis_scripts import UntypedRedis

log = logging.getLogger("ivmix.maintenance")

BATCH = 200  # jobs; bounds how long one script blocks Redis


class IndexBuilder:
    """Indexes every job once per process, because an older version may have run since the last time.

    Repeating or interrupting it does no harm. Until the first time is over, lists read records instead.
    """

    def __init__(self, redis: Redis, store: JobStore) -> None:
        self._redis: UntypedRedis = redis
        self._store = store
        self._is_done = False

    def run_once(self) -> None:
        """Build all indexes, unless this process has done it."""
        if self._is_done:
            return
        count, after, has_more = 0, None, True
        while has_more:
            ids, has_more = read_page(self._redis, INDEX, limit=BATCH, after=after, newest_first=False)
            self._store.reindex(ids, everything=True)
            count, after = count + len(ids), ids[-1] if ids else after
        self._redis.set(INDEXED, 1)
        self._is_done = True
        log.info("indexes of %d jobs are complete", count)
