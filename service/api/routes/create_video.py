"""POST /v1/videos and remix. `Submission.submit`, the path from a request to its jobs, also serves create-and-wait."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import AfterValidator, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from service.api.auth import Principal, ServicesDep, Writer
from service.api.num_videos import check_num_videos
from service.api.openapi.responses import errors, example_refs, ref, success
from service.api.rate_limits import waiting_limits
from service.api.routes.videos import POLL_AFTER_MS
from service.api.video_request_parser import FORMS
from service.api.video_requests import ParsedRequest, parsed_request
from service.api.visible_jobs import get_job
from service.catalog.model_entry import ModelEntry
from service.errors import InvalidParameter, ModelNotFound, ServiceError, VideoFailed
from service.jobs.consecutive_seeds import generations_of
from service.jobs.expected_time import expected_seconds
from service.jobs.job_record import DamagedJob
from service.jobs.model import Generation, Job
from service.jobs.record_reader import Idempotency
from service.jobs.request import VideoRequest
from service.jobs.rq_queues import generate_queue
from service.tracing import current_traceparent
from service.wire.video import Video
from service.wiring import Services

log = logging.getLogger("ivmix.api")
router = APIRouter(prefix="/v1", tags=["videos"])


def _plain_key(key: str) -> str:
    if not re.fullmatch(r"[ -~]{1,255}", key):
        raise ValueError(f"it has {len(key)} characters; 1 to 255 are possible, all of them printable ASCII")
    return key


IdempotencyKey = Annotated[
    Annotated[str, AfterValidator(_plain_key), WithJsonSchema({"type": "string", "pattern": "^[ -~]{1,255}$"})]
    | SkipJsonSchema[None],
    Header(
        alias="Idempotency-Key",
        description="Identifies this request: repeated within 24 hours, it returns the video of the first one",
    ),
]

# Fields of requests that version 0.1 did not have.
NEWER_FIELDS = (
    "aspect_ratio",
    "resolution",
    "clip_skip",
    "num_videos",
    "loras",
    "input_reference",
    "strength",
    "reference_use",
    "conditioning_scale",
    "cache",
)

CREATE_ERRORS = errors(400, 413, 415, 422, 429)


def request_body(*examples: str) -> dict[str, Any]:
    """The `openapi_extra=` of a route that reads a VideoRequest."""
    schemas = {"application/json": "VideoRequest", **dict.fromkeys(FORMS, "VideoForm")}
    content = {
        kind: {"schema": ref("schemas", name), "examples": example_refs(*examples)} for kind, name in schemas.items()
    }
    return {"requestBody": {"required": True, "content": content}}


CHANGES_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {"schema": ref("schemas", "VideoChanges"), "examples": example_refs("AnotherSeed")}
        }
    }
}


async def rate_limited(request: Request, writer: Writer) -> Principal:
    if writer.requests_per_minute is not None:
        await run_in_threadpool(request.app.state.rate_limiter.check, writer)
    return writer


RateLimitedWriter = Annotated[Principal, Depends(rate_limited)]


async def read_request(request: Request, writer: RateLimitedWriter) -> AsyncGenerator[ParsedRequest]:
    """The parameter makes FastAPI check the key and its limits first, so that a rejected body is not read."""
    async with parsed_request(request, writer) as parsed:
        yield parsed


RequestBody = Annotated[ParsedRequest, Depends(read_request)]


@dataclass(frozen=True)
class Submission:
    """A FastAPI dependency: what every endpoint that creates videos needs, besides the body."""

    request: Request
    writer: RateLimitedWriter
    services: ServicesDep
    response: Response
    idempotency_key: IdempotencyKey = None

    def create(self, parsed: ParsedRequest, remixed_from: str | None = None) -> Video:
        """Submit, and show the first video as it is now."""
        jobs = self.submit(parsed, remixed_from)
        job = jobs[0]
        self.response.headers["openai-poll-after-ms"] = POLL_AFTER_MS
        try:
            found = self.services.store.get_with_position(job.id)
        except RedisError:  # the job exists: after an error, clients would create it again
            found = None
        job, position = found or (job, None)
        video_ids = None if parsed.body.num_videos is None else [each.id for each in jobs]
        return self.services.renderer.video(job, queue_position=position).model_copy(update={"video_ids": video_ids})

    async def remix(self, video_id: str, *, with_prompt: bool) -> Video:
        """Create a video from another one, and with its prompt if the body has none.

        Raises VideoNotFound, or VideoFailed for a damaged record.
        """
        source = await run_in_threadpool(get_job, self.services, self.writer, video_id)
        if isinstance(source, DamagedJob):
            raise VideoFailed(f"The video '{source.id}' cannot be made again: its stored record is damaged.")
        omitted = {"prompt": source.generation.prompt} if with_prompt else {}
        async with parsed_request(self.request, self.writer, source, **omitted) as parsed:
            return await run_in_threadpool(self.create, parsed, source.id)

    def submit(self, parsed: ParsedRequest, remixed_from: str | None = None) -> list[Job]:
        """Creates and enqueues the jobs of a request, or returns those of an earlier one with the same idempotency key.

        Raises:
            InvalidParameter, RateLimited, QueueFull, QuotaExceeded, NoSpace, ModelUnavailable, StorageError,
                IdempotencyKeyReused: nothing is left then.
        """
        services, body, key = self.services, parsed.body, self.idempotency_key
        idempotency = Idempotency(_unquoted(key), _fingerprint(body, remixed_from)) if key else None
        # Before validation: a replay succeeds even if the model or the receiver would be rejected by now.
        if idempotency and (earlier := services.store.find_by_idempotency_key(self.writer.owner, idempotency)):
            self.response.headers["idempotent-replayed"] = "true"
            return earlier
        generation = resolve_request(services, body)
        count = check_num_videos(body, self.writer, services.settings)
        services.free_space.require()
        services.loads.require(generation.model)
        # The first one was counted before the body was read.
        self.request.app.state.rate_limiter.check(self.writer, count - 1)
        jobs = self._new_jobs(body, generations_of(generation, count), remixed_from)
        created = self._store(jobs, parsed, idempotency)
        if created[0].id == jobs[0].id:
            log.info("%s created, model %s", ", ".join(job.id for job in jobs), generation.model)
        else:
            self.response.headers["idempotent-replayed"] = "true"
        return created

    def _new_jobs(self, body: VideoRequest, generations: Sequence[Generation], remixed_from: str | None) -> list[Job]:
        """With what the request does not say: its trace, and for a quota the expected time, which is the same for all,
        and 0 as long as the model has made no video."""
        expected_s = None
        if self.writer.gpu_seconds_per_day is not None:
            expected_s = expected_seconds(self.services.store.lists, generations[0])
        extra = {"traceparent": current_traceparent(), "expected_gpu_ms": round(1000 * (expected_s or 0.0))}
        new = partial(body.to_job, owner=self.writer.owner, remixed_from=remixed_from)
        return [new(each).model_copy(update=extra) for each in generations]

    def _store(self, jobs: list[Job], parsed: ParsedRequest, idempotency: Idempotency | None) -> list[Job]:
        """Store every job's reference, then create the records. Without new records, the files are deleted again."""
        services, settings = self.services, self.services.settings
        model, reference = jobs[0].generation.model, jobs[0].generation.reference
        queue = generate_queue(services.redis, model, job_timeout_s=settings.job_timeout_s)
        limits = waiting_limits(self.writer, settings.max_waiting)
        create = partial(services.store.create_many, jobs, queue, limits=limits, idempotency=idempotency)
        if reference is None or parsed.fetch is None:
            return create()
        references, file, ids = services.references, parsed.fetch(), [job.id for job in jobs]
        try:
            for job_id in ids:
                references.put(job_id, file, reference)
            created = create()
        except ServiceError:  # after an error of Redis there may be records, which only maintenance can wait for
            for job_id in ids:
                references.discard(job_id)
            raise
        done = references.created if created[0].id == ids[0] else references.discard
        for job_id in ids:
            done(job_id)
        return created


SubmissionDep = Annotated[Submission, Depends()]


@router.post(
    "/videos",
    summary="Create a video",
    description="503 `model_unavailable`: no worker can load the model; `message` has the reason. With `num_videos`, "
    "all videos of the request are created, or none; the response is the first one, and `video_ids` names all.",
    responses=success("VideoQueued", headers=("openai-poll-after-ms", "idempotent-replayed")) | CREATE_ERRORS,
    openapi_extra=request_body("PromptOnly", "PromptAndSettings"),
)
def create_video(submission: SubmissionDep, body: RequestBody) -> Video:
    return submission.create(body)


@router.post(
    "/videos/{video_id}/remix",
    summary="Remix a video",
    description="Creates a video with the settings and seed of another one, and a new prompt. Fields in the body "
    "override the source. A deleted video cannot be remixed.",
    responses=success("VideoRemixed", headers=("openai-poll-after-ms", "idempotent-replayed"))
    | CREATE_ERRORS
    | errors(404),
    openapi_extra=request_body("RemixPrompt"),
)
async def remix_video(video_id: str, submission: SubmissionDep) -> Video:
    return await submission.remix(video_id, with_prompt=False)


@router.post(
    "/videos/{video_id}/run_again",
    summary="Run a video again",
    description="As remix, but the prompt is inherited too: without a body, the same video is made again. Send "
    '`{"seed": -1}` for another one.',
    responses=success("VideoRemixed", headers=("openai-poll-after-ms", "idempotent-replayed"))
    | CREATE_ERRORS
    | errors(404),
    openapi_extra=CHANGES_BODY,
)
async def run_again(video_id: str, submission: SubmissionDep) -> Video:
    return await submission.remix(video_id, with_prompt=True)


def _fingerprint(body: VideoRequest, remixed_from: str | None) -> str:
    """Hash of the parsed request; raw multipart bodies differ in their boundary."""
    # Fields that 0.1 did not have are left out where they are absent, so that its keys still match after an upgrade.
    new = {name for name in NEWER_FIELDS if getattr(body, name) is None}
    parsed = json.dumps([body.model_dump(mode="json", exclude=new), remixed_from], sort_keys=True)
    return hashlib.sha256(parsed.encode()).hexdigest()


def _unquoted(key: str) -> str:
    """The IETF draft quotes the key; most clients do not."""
    return key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key


def resolve_request(services: Services, body: VideoRequest) -> Generation:
    """What the request makes, with its receiver checked. Raises InvalidParameter."""
    generation = _find_model(services, body.model).resolve(body)
    if body.callback_url is not None:
        services.webhooks.url_policy.check(body.callback_url, "callback_url")
    return generation


def _find_model(services: Services, model: str | None) -> ModelEntry:
    """Raises InvalidParameter, as for other fields."""
    try:
        return services.models.get(model)
    except ModelNotFound as e:
        raise InvalidParameter("model", e.message, e.code) from e
