"""Response bodies of GET /v1/usage."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field

from service.api.schemas import Page
from service.wire.video import ResponseModel


class DayUsage(ResponseModel):
    """The videos of one API key that ended on one day."""

    id: str = Field(description="For `after`")
    object: Literal["usage"] = "usage"
    date: datetime.date = Field(validation_alias="day", description="UTC")
    owner: str = Field(description="Id of the API key, or of the one that it replaces")
    videos: int = Field(description="Completed ones")
    failed: int
    cancelled: int
    gpu_seconds: float = Field(
        description="Of all of them: encoding, sampling and decoding. Steps that were repeated after a fault count once"
    )
    failed_gpu_seconds: float = Field(description="The part of failed and cancelled videos")
    bytes: int = Field(description="Size of the completed videos")


class UsageList(Page[DayUsage]):
    gpu_seconds_per_day: int | None = Field(description="Quota of the API key that asks; null means none")


CSV_COLUMNS = ("date", "owner", "videos", "failed", "cancelled", "gpu_seconds", "failed_gpu_seconds", "bytes")
