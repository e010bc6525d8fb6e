"""GET /v1/usage: videos, GPU seconds and bytes by day and API key."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from service.api.auth import Principal, Reader, ServicesDep
from service.api.openapi.responses import errors, success
from service.api.usage_schemas import CSV_COLUMNS, DayUsage, UsageList
from service.errors import InvalidParameter, NotAllowed
from service.jobs.usage import UsageStore

MOST_DAYS = 366
DEFAULT_DAYS = 30
MOST_ROWS = 1000

router = APIRouter(prefix="/v1", tags=["usage"])

DateParameter = Annotated[str, Field(json_schema_extra={"format": "date"})] | SkipJsonSchema[None]
TextParameter = Annotated[str, Field(max_length=200)] | SkipJsonSchema[None]


@router.get(
    "/usage",
    summary="Usage by day and key",
    description="Of videos that ended on these days, the oldest day first. A key sees its own usage; with the scope "
    "`admin` or `videos.read_all` that of all keys. Days of the last 400 are kept.",
    response_model=UsageList,
    responses=success(
        "UsageList", headers=("x-has-more", "x-last-id"), content={"text/csv": {"schema": {"type": "string"}}}
    )
    | errors(400),
)
def report_usage(
    reader: Reader,
    services: ServicesDep,
    start_date: Annotated[DateParameter, Query(description="First day, UTC; default: 29 days before the last")] = None,
    end_date: Annotated[DateParameter, Query(description="Last day, UTC; default: today")] = None,
    owner: Annotated[TextParameter, Query(description="Only the usage of this key")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
    after: Annotated[TextParameter, Query(description="The last_id of the previous page")] = None,
    format: Literal["json", "csv"] = "json",
) -> Response:
    first, last = _days(start_date, end_date)
    found, has_more = UsageStore(services.redis).page(
        first, last, owner=_visible(reader, owner), limit=limit, after=_cursor(after)
    )
    rows = [DayUsage.model_validate(usage) for usage in found]
    page = UsageList.of(rows, has_more=has_more, gpu_seconds_per_day=reader.gpu_seconds_per_day)
    if format == "csv":
        headers = {"x-has-more": str(page.has_more).lower()} | ({"x-last-id": page.last_id} if page.last_id else {})
        return Response(_csv(rows), media_type="text/csv", headers=headers)
    return Response(page.model_dump_json(), media_type="application/json")


def _days(start: str | None, end: str | None) -> tuple[date, date]:
    """Raises InvalidParameter."""
    last = datetime.now(UTC).date() if end is None else _date("end_date", end)
    first = last - timedelta(days=min(DEFAULT_DAYS - 1, last.toordinal() - 1)) if start is None else None
    first = first or _date("start_date", start or "")
    if first > last:
        raise InvalidParameter("start_date", f"start_date={first} is after end_date={last}; exchange them.")
    if (last - first).days >= MOST_DAYS:
        raise InvalidParameter("start_date", f"{first} to {last} is longer than {MOST_DAYS} days; ask for parts of it.")
    return first, last


def _date(param: str, text: str) -> date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidParameter(param, f"'{text[:40]}' is no date; write it as 2026-11-27.")


def _visible(reader: Principal, owner: str | None) -> str | None:
    """Raises NotAllowed for the usage of another key."""
    if owner is not None and reader.visible_owner not in (None, owner):
        raise NotAllowed("This API key may see its own usage only; leave out 'owner'.")
    return owner if reader.visible_owner is None else reader.visible_owner


def _cursor(after: str | None) -> tuple[date, str] | None:
    if after is None:
        return None
    day, colon, owner = after.partition(":")
    if not colon:
        raise InvalidParameter("after", f"'{after[:40]}' is no id of usage; send the last_id of the previous page.")
    return _date("after", day), owner


def _csv(rows: list[DayUsage]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    writer.writerows([[getattr(row, name) for name in CSV_COLUMNS] for row in rows])
    return text.getvalue()
