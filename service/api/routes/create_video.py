"""What makes a video: create, remix, and create-and-wait. One way from a request to a job for all three."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api.auth import Principal, Wired, Writer
from service.api.errors import responses
from service.api.parsing import parse, read_body, read_request
from service.api.rate_limits import waiting_limits
from service.api.routes.videos import POLL_AFTER_MS, find
from service.catalog.model_entry import ModelEntry
from service.errors import InvalidParameter, ModelNotFound
from service.jobs.model import Job, VideoRequest
from service.jobs.rq_queues import generate_queue
from service.jobs.store import Idempotency
from service.wire.video import Renderer, Video
from service.wiring import Services

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[ -~]{1,255}$",
        description="a name for this request: sent again within 24 hours, it brings the first one's video",
    ),
]

REFUSALS = responses(400, 401, 403, 413, 415, 422, 429)


async def rate_limited(request: Request, writer: Writer) -> Principal:
    if writer.requests_per_minute is not None:
        await run_in_threadpool(request.app.state.rate_limiter.check, writer)
    return writer


# Declared before the body, so a request over the limit is not read.
Creator = Annotated[Principal, Depends(rate_limited)]
Wanted = Annotated[VideoRequest, Depends(read_request)]


@router.post("/videos", summary="Create a video", responses=REFUSALS)
def create_video(
    creator: Creator, wanted: Wanted, services: Wired, response: Response, idempotency_key: IdempotencyKey = None
) -> Video:
    job = submit(services, creator, wanted, idempotency_key, response)
    return shown(services, job, response)


@router.post(
    "/videos/{video_id}/remix", summary="The same again with another prompt", responses=REFUSALS | responses(404)
)
async def remix_video(
    creator: Creator,
    video_id: str,
    request: Request,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Video:
    """Settings and seed are those of the source, unless given; a source that was deleted cannot be remixed."""
    source = await run_in_threadpool(find, services, creator, video_id)
    wanted = parse(await read_body(request), source.generation)

    def remix() -> Video:
        job = submit(services, creator, wanted, idempotency_key, response, remixed_from=source.id)
        return shown(services, job, response)

    return await run_in_threadpool(remix)


def submit(
    services: Services,
    creator: Principal,
    wanted: VideoRequest,
    idempotency_key: str | None,
    response: Response,
    *,
    remixed_from: str | None = None,
) -> Job:
    """Raises what the request did wrong, before anything is written; QueueFull; IdempotencyKeyReused."""
    named = Idempotency(_bare(idempotency_key), _fingerprint(wanted, remixed_from)) if idempotency_key else None
    # First: a repetition brings its video whatever the model offers and the receiver's name means by now.
    if named and (before := services.store.find_repeated(creator.owner, named)):
        response.headers["idempotent-replayed"] = "true"
        return before
    generation = _model(services, wanted.model).resolve(wanted)
    if wanted.callback_url is not None:
        services.webhooks.url_policy.check(wanted.callback_url, "callback_url")
    job = Job.requested(wanted, generation, owner=creator.owner, remixed_from=remixed_from)
    queue = generate_queue(services.redis, generation.model, job_timeout_s=services.settings.job_timeout_s)
    limits = waiting_limits(creator, services.settings.max_waiting)
    kept = services.store.create(job, queue, limits=limits, idempotency=named)
    if kept.id == job.id:
        log.info("%s created, model %s", job.id, generation.model)
    else:
        response.headers["idempotent-replayed"] = "true"
    return kept


def shown(services: Services, job: Job, response: Response) -> Video:
    response.headers["openai-poll-after-ms"] = POLL_AFTER_MS
    renderer = Renderer(services.settings, services.storage)
    try:
        found = services.store.show(job.id)
    except RedisError:  # the job is safe already: an error now would make clients send it again
        found = None
    job, position = found or (job, None)
    return renderer.video(job, queue_position=position)


def _fingerprint(wanted: VideoRequest, remixed_from: str | None) -> str:
    """Of what was meant, not of the bytes: a multipart body has another boundary each time."""
    meant = json.dumps([wanted.model_dump(mode="json"), remixed_from], sort_keys=True)
    return hashlib.sha256(meant.encode()).hexdigest()


def _bare(key: str) -> str:
    """The draft RFC writes the key as a quoted string, most clients do not."""
    return key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key


def _model(services: Services, model: str | None) -> ModelEntry:
    try:
        return services.models.get(model)
    except ModelNotFound as e:
        raise InvalidParameter("model", e.message, e.code) from e
