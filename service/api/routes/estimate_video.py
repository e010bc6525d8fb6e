"""POST /v1/videos/estimate: checks a request as creating does, and says what it would cost. Nothing is created."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from service.api.auth import ServicesDep, Writer
from service.api.num_videos import check_num_videos
from service.api.openapi.responses import errors, success
from service.api.routes.create_video import request_body, resolve_request
from service.api.schemas import VideoEstimate
from service.api.video_requests import ParsedRequest, parsed_request
from service.jobs.expected_time import expected_seconds

router = APIRouter(prefix="/v1", tags=["videos"])


async def read_request(request: Request, writer: Writer) -> AsyncGenerator[ParsedRequest]:
    """The parameter makes FastAPI check the key before the body is read."""
    async with parsed_request(request, writer) as parsed:
        yield parsed


@router.post(
    "/videos/estimate",
    summary="Estimate a video",
    description="Takes the body of a new video, and answers with all its settings, its network calls and the seconds "
    "that each is expected to take, or with the error that creating it would have. Creates nothing, and does not count "
    "towards the limit of new videos.",
    responses=success("VideoEstimate") | errors(400, 413, 415),
    openapi_extra=request_body("PromptOnly", "PromptAndSettings"),
)
def estimate_video(
    writer: Writer, parsed: Annotated[ParsedRequest, Depends(read_request)], services: ServicesDep
) -> VideoEstimate:
    body = parsed.body
    generation = resolve_request(services, body)
    check_num_videos(body, writer, services.settings)
    services.loads.require(generation.model)
    return VideoEstimate.of(generation, expected_seconds(services.store.lists, generation), seed=body.seed)
