"""The videos that are there: status, list, delete, cancel, download. What makes new ones is in `creation`."""

from __future__ import annotations

import logging
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.api.auth import Principal, Reader, Wired, Writer, get_reader, get_services
from service.api.errors import problem, responses
from service.api.file_content import content
from service.api.polls import Polls
from service.api.schemas import DeletedVideo, VideoList
from service.errors import StorageError, VideoNotDeletable, VideoNotFound
from service.jobs.model import Job
from service.jobs.store import Order, Shown
from service.storage.manifest import delete_files
from service.wire.video import STATUS, Renderer, Status, Variant, Video
from service.wiring import Services

METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
POLL_AFTER_MS = "1000"  # the SDKs keep the first value for the whole wait, so it is no place for estimates

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])


def find(services: Services, principal: Principal, video_id: str) -> Job:
    return show(services, principal, video_id)[0]


def show(services: Services, principal: Principal, video_id: str) -> Shown:
    """The job and its place in the queue. Raises VideoNotFound, also for the job of somebody else."""
    found = visible(services.store.show(video_id), principal, video_id)
    if services.store.give_up_overdue(found[0]):
        return show(services, principal, video_id)
    return found


def visible(found: Shown | None, principal: Principal, video_id: str) -> Shown:
    """Raises VideoNotFound, also for the job of somebody else."""
    if found is None or principal.sees not in (None, found[0].owner):
        raise VideoNotFound(video_id)
    return found


# Polls are most of the traffic, and dependencies would be a third of their cost: so the caller is asked by hand, and
# `poll`, the same without FastAPI around it, stands before all other routes. This one is for the contract.
@router.get("/videos/{video_id}", summary="Status of a video", response_model=Video, responses=responses(401, 403, 404))
async def retrieve_video(request: Request, video_id: str) -> Response:
    reader, services = await get_reader(request), await get_services(request)
    polls: Polls = request.app.state.polls
    job, position = visible(await polls.show(video_id), reader, video_id)
    if job.is_overdue(time.time()):
        job, position = await run_in_threadpool(show, services, reader, video_id)
    video = Renderer(services.settings, services.storage).video(job, queue_position=position)
    # Written here: FastAPI would go to a thread to check what was just made.
    headers = {"openai-poll-after-ms": POLL_AFTER_MS}
    return Response(video.model_dump_json(), media_type="application/json", headers=headers)


async def poll(request: Request) -> Response:
    return await retrieve_video(request, request.path_params["video_id"])


async def metadata_filter(request: Request) -> dict[str, str]:
    """metadata[project]=shapes: FastAPI does not read brackets; the contract describes them by hand."""
    found = ((METADATA.fullmatch(name), value) for name, value in request.query_params.items())
    return {name[1]: value for name, value in found if name}


@router.get("/videos", summary="List videos", responses=responses(400, 401, 403))
def list_videos(
    reader: Reader,
    services: Wired,
    metadata: Annotated[dict[str, str], Depends(metadata_filter)],
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(max_length=64, description="the last id of the page before")] = None,
    status: Annotated[Status | None, Query(description="only videos of this status")] = None,
) -> VideoList:
    page: dict[str, Any] = {"limit": limit, "order": order, "after": after, "owner": reader.sees}
    if status or metadata:

        def wanted(job: Job) -> bool:
            return status in (None, STATUS[job.state]) and metadata.items() <= job.metadata.items()

        jobs, has_more, seen = services.store.search(wanted, **page)
    else:
        (jobs, has_more), seen = services.store.list(**page), None
    renderer = Renderer(services.settings, services.storage)
    videos = [renderer.video(job) for job in jobs]
    first_id, last_id = (videos[0].id, videos[-1].id) if videos else (None, seen if has_more else None)
    return VideoList(data=videos, first_id=first_id, last_id=last_id, has_more=has_more and last_id is not None)


@router.delete("/videos/{video_id}", summary="Delete a video", responses=responses(400, 401, 403, 404))
def delete_video(video_id: str, writer: Writer, services: Wired) -> DeletedVideo:
    """Record and files of an ended video; one that still runs is to be cancelled first."""
    job = find(services, writer, video_id)
    if not job.state.is_terminal:
        raise VideoNotDeletable(f"The video '{job.id}' is {job.state}; cancel it first, or wait for its end.")
    services.store.delete(job.id)
    try:
        delete_files(services.storage, job.id)
    except StorageError as e:  # the maintenance finds them: a job without a record has files to be removed
        log.warning("%s: its files stay for now: %s", job.id, e)
    log.info("%s deleted", job.id)
    return DeletedVideo(id=job.id)


@router.post("/videos/{video_id}/cancel", summary="Cancel a video", responses=responses(401, 403, 404))
def cancel_video(video_id: str, writer: Writer, services: Wired, response: Response) -> Video:
    """At once while it waits, after the current step while it runs; one that has ended stays as it is. Say it as often
    as you like."""
    job = services.store.cancel(find(services, writer, video_id).id)
    if job is None:
        raise VideoNotFound(video_id)
    log.info("%s cancel asked for, is %s", job.id, job.state)
    response.headers["openai-poll-after-ms"] = POLL_AFTER_MS
    return Renderer(services.settings, services.storage).video(job)


_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_KINDS = ("video/mp4", "image/webp", "image/jpeg")
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": dict.fromkeys(_KINDS, _BYTES)},
    206: {"description": "A part of the file, for a request with Range", "content": dict.fromkeys(_KINDS, _BYTES)},
    304: {"description": "The client has it already (If-None-Match)"},
    307: {"description": "The file is at the address in Location, for a while"},
}


@router.head("/videos/{video_id}/content", include_in_schema=False)
@router.get(
    "/videos/{video_id}/content",
    summary="Download a video",
    responses=_CONTENT | responses(400, 401, 403, 404, 416),
    response_class=Response,
)
def download_video(
    request: Request, video_id: str, reader: Reader, services: Wired, variant: Variant = "video"
) -> Response:
    return content(request, find(services, reader, video_id), variant, services.storage)


def unsupported(request: Request) -> Response:
    """OpenAI has these, we do not."""
    return problem(404, f"This server does not support {request.url.path}.", code="unsupported_endpoint")


for path in ("/videos/edits", "/videos/extensions", "/videos/characters"):
    router.add_api_route(path, unsupported, methods=["POST"], include_in_schema=False)
router.add_api_route("/videos/characters/{character_id}", unsupported, methods=["GET"], include_in_schema=False)
