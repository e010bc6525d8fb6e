"""Status, list, cancel and delete of existing videos."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.params import Depends
from starlette.concurrency import run_in_threadpool

from service.api.auth import Reader, ServicesDep, Writer, get_reader, get_services, get_signer
from service.api.errors import error_response
from service.api.openapi.responses import Responses, errors, success
from service.api.polls import DirectRoute, PollReader
from service.api.routes.video_filters import METADATA_PARAMETER, AfterParameter, Filter, check_cursor
from service.api.schemas import DeletedVideo, VideoList
from service.api.visible_jobs import audited, get_job_and_position, get_own_job
from service.errors import StorageError, VideoNotFound
from service.jobs.job_list import READ_AT_ONCE, Order
from service.jobs.model import Job, JobState
from service.jobs.store import Deletion
from service.storage.manifest import delete_all_files
from service.wire.video import Video
from service.wiring import Services

POLL_AFTER_MS = "1000"  # constant, because the SDKs use the first value for the whole wait

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])


def add_polls(app: FastAPI, *, dependencies: Sequence[Depends], responses: Responses) -> None:
    """Not through a router: FastAPI's search through routers takes a tenth of the time of a poll."""
    in_progress = success("VideoInProgress", "VideoCompleted", "VideoCancelled", headers=("openai-poll-after-ms",))
    app.router.add_api_route(
        "/v1/videos/{video_id}",
        retrieve_video,
        methods=["GET"],
        summary="Retrieve the status of a video",
        tags=["videos"],
        response_model=Video,
        dependencies=dependencies,
        responses=in_progress | errors(404) | responses,
        route_class_override=DirectRoute,
    )


async def retrieve_video(request: Request, video_id: str) -> Response:
    reader, services = await get_reader(request), await get_services(request)
    polls: PollReader = request.app.state.polls
    job, position, body = await polls.read(video_id) or (None, None, None)
    if job is None or job.is_overdue(time.time()) or reader.visible_owner not in (None, job.owner):
        job, position = await run_in_threadpool(get_job_and_position, services, reader, video_id)
        body = None
    if body is None:
        await get_signer(request)  # of its URLs
        body = services.renderer.video(job, queue_position=position).model_dump_json()
    return Response(body, media_type="application/json", headers={"openai-poll-after-ms": POLL_AFTER_MS})


@router.get(
    "/videos",
    summary="List videos",
    description="All conditions are combined. The videos of a page and `has_more` are exact, however rare matches are.",
    responses=success("VideoList") | errors(400),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
def list_videos(
    reader: Reader,
    services: ServicesDep,
    wanted: Filter,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Order = "desc",
    after: AfterParameter = None,
) -> VideoList:
    if after is not None:
        check_cursor(services, after, reader.visible_owner)
    jobs, has_more = services.store.lists.page(wanted, limit=limit, order=order, after=after)
    renderer = services.renderer
    positions = _positions(services, jobs) if wanted.states == frozenset({JobState.QUEUED}) else {}
    videos = [renderer.video(job, queue_position=positions.get(job.id)) for job in jobs]
    return VideoList.of(videos, has_more=has_more)


def _positions(services: Services, jobs: Sequence[Job]) -> dict[str, int | None]:
    """How many are ahead of each, read in parts that do not block Redis for long."""
    ids = [job.id for job in jobs]
    parts = (ids[start : start + READ_AT_ONCE] for start in range(0, len(ids), READ_AT_ONCE))
    found = (entry for part in parts for entry in services.store.get_many_with_positions(part))
    return {job.id: position for job, position in filter(None, found)}


@router.delete(
    "/videos/{video_id}",
    summary="Delete a video",
    description="Deletes the record and the files of a video. A queued video is cancelled before; a running one is "
    "cancelled, is 404 from now on, and its files are deleted when its worker has stopped. Webhooks are those of a "
    "cancelled video.",
    responses=success("DeletedVideo") | errors(404),
)
def delete_video(video_id: str, writer: Writer, services: ServicesDep) -> DeletedVideo:
    job = get_own_job(services, writer, video_id)
    with audited(services, writer, "video.deleted", job):
        deletion = services.store.delete(job.id, owner=writer.owner)
        if deletion is None:
            raise VideoNotFound(video_id)
    if deletion is Deletion.STOPPING:
        log.info("%s is cancelled and will be deleted", job.id)
        return DeletedVideo(id=job.id)
    try:
        delete_all_files(services.storage, job.id)
    except StorageError as e:  # maintenance deletes them
        log.warning("%s: cannot delete its files yet: %s", job.id, e)
    log.info("%s deleted", job.id)
    return DeletedVideo(id=job.id)


@router.post(
    "/videos/{video_id}/cancel",
    summary="Cancel a video",
    description="A queued video is cancelled immediately, a running one after its current step. Idempotent; a video "
    "that has ended is not changed.",
    responses=success("VideoCancelled", headers=("openai-poll-after-ms",)) | errors(404),
)
def cancel_video(video_id: str, writer: Writer, services: ServicesDep, response: Response) -> Video:
    before = get_own_job(services, writer, video_id)
    with audited(services, writer, "video.cancelled", before):
        job = services.store.cancel(before.id)
        if job is None:
            raise VideoNotFound(video_id)
    log.info("%s: cancel requested, state %s", job.id, job.state)
    response.headers["openai-poll-after-ms"] = POLL_AFTER_MS
    return services.renderer.video(job)


def unsupported(request: Request) -> Response:
    """Endpoints of OpenAI that this server does not have."""
    return error_response(404, f"This server does not support {request.url.path}.", code="unsupported_endpoint")


for path in ("/videos/edits", "/videos/extensions", "/videos/characters"):
    router.add_api_route(path, unsupported, methods=["POST"], include_in_schema=False)
router.add_api_route("/videos/characters/{character_id}", unsupported, methods=["GET"], include_in_schema=False)
