"""/v1/videos and /v1/models. Each endpoint is one step of a job's way; what it means is decided below this folder."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from redis.exceptions import RedisError

from service.api.bodies import DeletedVideo, Model, ModelList, Video, VideoList, read_request, video
from service.api.content import Variant, content
from service.api.problems import problem, responses
from service.errors import InvalidParameter, ModelNotFound, VideoNotDeletable, VideoNotFound
from service.jobs import Job, VideoRequest
from service.manifest import delete_files
from service.models import ModelEntry
from service.queues import generate_queue
from service.wiring import Services

POLL_AFTER_MS = "1000"  # the SDKs keep the first value for the whole wait, so it is no place for estimates

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", responses=responses(500, 503))


def get_services(request: Request) -> Services:
    return request.app.state.services


Wired = Annotated[Services, Depends(get_services)]


def find_job(video_id: str, services: Wired) -> Job:
    job = services.store.get(video_id)
    if job is None:
        raise VideoNotFound(video_id)
    return job


Found = Annotated[Job, Depends(find_job)]


@router.post("/videos", tags=["videos"], summary="Create a video", responses=responses(400, 413, 415))
def create_video(wanted: Annotated[VideoRequest, Depends(read_request)], services: Wired, response: Response) -> Video:
    generation = _model(services, wanted.model).resolve(wanted)
    queue = generate_queue(services.redis, generation.model, job_timeout_s=services.settings.job_timeout_s)
    job = services.store.create(Job.new(generation, metadata=wanted.metadata, user=wanted.user), queue)
    log.info("%s created, model %s", job.id, generation.model)
    return _answer(job, services, response)


@router.get("/videos", tags=["videos"], summary="List videos", responses=responses(400))
def list_videos(
    services: Wired,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=64, description="the last id of the page before")] = None,
) -> VideoList:
    jobs, has_more = services.store.list(limit=limit, order=order, after=after)
    videos = [video(job, public_base_url=services.settings.public_base_url) for job in jobs]
    first_id, last_id = (videos[0].id, videos[-1].id) if videos else (None, None)
    return VideoList(data=videos, first_id=first_id, last_id=last_id, has_more=has_more and bool(videos))


def unsupported(request: Request) -> Response:
    """OpenAI has these, we do not; declared so that their names are not taken for video ids."""
    return problem(404, f"This server does not support {request.url.path}.", code="unsupported_endpoint")


for path in ("/videos/edits", "/videos/extensions", "/videos/characters", "/videos/characters/{character_id}"):
    router.add_api_route(path, unsupported, methods=["GET", "POST"], include_in_schema=False)
router.add_api_route("/videos/{video_id}/remix", unsupported, methods=["POST"], include_in_schema=False)


@router.get("/videos/{video_id}", tags=["videos"], summary="Status of a video", responses=responses(404))
def retrieve_video(job: Found, services: Wired, response: Response) -> Video:
    return _answer(job, services, response)


@router.delete("/videos/{video_id}", tags=["videos"], summary="Delete a video", responses=responses(400, 404))
def delete_video(job: Found, services: Wired) -> DeletedVideo:
    if not job.state.is_terminal:
        raise VideoNotDeletable(f"The video '{job.id}' is {job.state}; wait until it is completed or failed.")
    # Files first: if this breaks off, the record is still there to be deleted again.
    delete_files(services.storage, job.id)
    services.store.delete(job.id)
    log.info("%s deleted", job.id)
    return DeletedVideo(id=job.id)


_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": dict.fromkeys(("video/mp4", "image/webp", "image/jpeg"), _BYTES)},
    206: {"description": "A part of the file, for a request with Range", "content": {"video/mp4": _BYTES}},
    304: {"description": "The client has it already (If-None-Match)"},
    307: {"description": "The file is at the address in Location, for a while"},
}


@router.head("/videos/{video_id}/content", include_in_schema=False)
@router.get(
    "/videos/{video_id}/content",
    tags=["videos"],
    summary="Download a video",
    responses=_CONTENT | responses(400, 404, 416),
    response_class=Response,
)
def download_video(request: Request, job: Found, services: Wired, variant: Variant = "video") -> Response:
    return content(request, job, variant, services.storage)


@router.get("/models", tags=["models"], summary="Models and what they can do")
def list_models(services: Wired) -> ModelList:
    entries = (services.models.get(model) for model in services.models.ids())
    return ModelList(data=[Model.model_validate(entry) for entry in entries])


@router.get("/models/{model}", tags=["models"], summary="One model", responses=responses(404))
def retrieve_model(model: str, services: Wired) -> Model:
    return Model.model_validate(services.models.get(model))


def _model(services: Services, model: str | None) -> ModelEntry:
    try:
        return services.models.get(model)
    except ModelNotFound as e:
        raise InvalidParameter("model", e.message, e.code) from e


def _answer(job: Job, services: Services, response: Response) -> Video:
    response.headers["openai-poll-after-ms"] = POLL_AFTER_MS
    try:
        position = services.store.queue_position(job)
    except RedisError:  # the job is safe already: an error now would make clients send it again
        position = None
    return video(job, queue_position=position, public_base_url=services.settings.public_base_url)
