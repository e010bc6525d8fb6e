"""`num_videos`: several videos in one request, each counted against all limits."""

from __future__ import annotations

from service.api.auth import Principal
from service.api.rate_limits import waiting_limits
from service.errors import InvalidParameter
from service.jobs.request import VideoRequest
from service.settings import Settings


def check_num_videos(body: VideoRequest, principal: Principal, settings: Settings) -> int:
    """How many videos the request is for. Raises InvalidParameter if a limit could never allow so many at once."""
    count = body.num_videos or 1
    waiting = waiting_limits(principal, settings.max_waiting)
    limits = (
        (settings.max_videos_per_request, "the limit of one request (IVMIX_MAX_VIDEOS_PER_REQUEST)"),
        (waiting.per_queue, "the limit of waiting videos of a model"),
        (waiting.per_owner, "the limit of waiting videos of this API key"),
        (principal.requests_per_minute, "the limit of new videos per minute of this API key"),
    )
    most, which = min(((limit, which) for limit, which in limits if limit is not None), key=lambda pair: pair[0])
    if count > 1 and count > most:
        raise InvalidParameter("num_videos", f"num_videos={count} is above {most}, {which}; send several requests.")
    return count
