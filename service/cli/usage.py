"""`ivmix usage`: what each API key has used, by day; for the operator, who can read Redis."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, date, datetime, timedelta

from rich.console import Console
from rich.table import Table

from service.api_keys import KeyStore
from service.cli.redis_server import reachable_redis
from service.errors import ConfigurationError
from service.jobs.usage import Usage, UsageStore
from service.settings import load_settings

COLUMNS = ("date", "owner", "name", "videos", "failed", "cancelled", "gpu_seconds", "failed_gpu_seconds", "bytes")
PAGE = 500


def show(*, first: str | None, last: str | None, owner: str | None, as_csv: bool) -> None:
    end = _date(last) if last else datetime.now(UTC).date()
    begin = _date(first) if first else end - timedelta(days=min(29, end.toordinal() - 1))
    with reachable_redis(load_settings()) as redis:
        names = {key.id: key.name for key, _ in KeyStore(redis).list()}
        store, rows = UsageStore(redis), _Rows(as_csv=as_csv)
        after, has_more = None, True
        while has_more:
            page, has_more = store.page(begin, end, owner=owner, limit=PAGE, after=after)
            for usage in page:
                rows.add(usage, names.get(usage.owner, ""))
                after = usage.day, usage.owner
    rows.end()


class _Rows:
    """CSV is printed row by row, a table at the end."""

    def __init__(self, *, as_csv: bool) -> None:
        self._csv = csv.writer(sys.stdout) if as_csv else None
        self._table = Table(*COLUMNS, box=None, pad_edge=False)
        if self._csv:
            self._csv.writerow(COLUMNS)

    def add(self, usage: Usage, name: str) -> None:
        counts = usage.videos, usage.failed, usage.cancelled, usage.gpu_seconds, usage.failed_gpu_seconds, usage.bytes
        row = [usage.day.isoformat(), usage.owner, name, *map(str, counts)]
        if self._csv:
            self._csv.writerow(row)
        else:
            self._table.add_row(*row)

    def end(self) -> None:
        if self._csv is None:
            Console(width=200).print(self._table)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as e:
        raise ConfigurationError(f"'{text}' is no date; write it as 2026-11-27") from e
