"""What comes in and what goes out: three encodings of a request to one VideoRequest, and a job's record to a Video."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.types import Message

from service.errors import InvalidParameter
from service.jobs import Job, JobState, Phase, SamplerSettings, VideoRequest
from service.models import Range, invalid_parameter

Body = dict[str, Any]  # what a client sent, before anybody looked at it

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_DEPTH = 4  # extra_body[sampler][interval][]

# Some clients put everything beyond OpenAI's fields into one of these objects (SGLang's bench, vLLM-Omni).
NESTED = ("extra_body", "extra_json", "extra_params")
OBJECTS = ("sampler", "metadata", *NESTED)

# Fields that other servers know, and the values that ask for nothing we lack.
_ONE = (None, 1, "1")
_OFF = (None, False, "false", "False")
_ABSENT = (None, "")
NO_OPS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("n", "num_outputs_per_prompt"), _ONE),
    **dict.fromkeys(
        ("stream", "enable_frame_interpolation", "enable_upscaling", "enable_teacache", "enable_cache_dit"), _OFF
    ),
    **dict.fromkeys(
        ("input_reference", "image_reference", "reference_url", "video_reference", "audio_reference", "lora"), _ABSENT
    ),
    **dict.fromkeys(
        ("guidance_scale_2", "true_cfg_scale", "boundary_ratio", "flow_shift", "max_sequence_length", "quality"),
        _ABSENT,
    ),
}


async def read_request(request: Request) -> VideoRequest:
    """Raises InvalidParameter, or HTTPException 400, 413, 415 for a body that cannot be read at all."""
    raw = await read_bytes(request, request.app.state.services.settings.max_body_bytes)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in FORMS:
        body = await _read_form(request, raw)
    elif kind == "application/json" or kind.endswith("+json"):
        body = read_json(raw)
    else:
        raise HTTPException(415, f"Send the body as application/json or {' or '.join(FORMS)}.")
    return parse(body)


def parse(body: Body) -> VideoRequest:
    body = _flatten({name: _object(name, value) for name, value in body.items()})
    for name in NO_OPS.keys() & body.keys():
        if body.pop(name) not in NO_OPS[name]:
            raise InvalidParameter(
                name, f"This server does not support '{name}'; leave it out.", "unsupported_parameter"
            )
    absent = {name for name in VideoRequest.model_fields if body.get(name) is None}
    try:
        return VideoRequest.model_validate({name: value for name, value in body.items() if name not in absent})
    except ValidationError as e:
        raise invalid_parameter(e) from e


async def read_bytes(request: Request, limit: int) -> bytes:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes.")
    return bytes(raw)


def read_json(raw: bytes) -> Body:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise HTTPException(400, "The body is not JSON.") from e
    if not isinstance(body, dict):
        raise HTTPException(400, "The body is not a JSON object.")
    return cast(Body, body)


async def _read_form(request: Request, raw: bytes) -> Body:
    async def receive() -> Message:
        return {"type": "http.request", "body": raw}

    async with Request(request.scope, receive).form(max_part_size=len(raw)) as form:
        items = form.multi_items()
        for name, value in items:
            if isinstance(value, UploadFile):
                raise InvalidParameter(name, f"This server takes no files ('{name}').", "unsupported_parameter")
        return unbracket((name, str(value)) for name, value in items)


def unbracket(items: Iterable[tuple[str, str]]) -> Body:
    """a=1, b[c]=2, d[]=3, d[]=4 -> {a: 1, b: {c: 2}, d: [3, 4]}: how the OpenAI SDKs send objects and lists."""
    body: Body = {}
    for name, value in items:
        path = [name.partition("[")[0], *re.findall(r"\[([^\[\]]*)\]", name)]
        if len(path) > MAX_DEPTH:
            raise InvalidParameter(name[:80], f"Unknown parameter: '{name[:80]}'.", "unknown_parameter")
        try:
            _insert(body, path, value, param=name)
        except (AttributeError, TypeError) as e:
            raise InvalidParameter(name, f"'{name}' is given in two shapes.") from e
    return body


def _insert(body: Body, path: list[str], value: str, *, param: str) -> None:
    name, *inner = path
    if not inner:
        _put(body, name, value, param=param)
    elif inner == [""]:
        body.setdefault(name, []).append(value)
    else:
        _insert(body.setdefault(name, {}), inner, value, param=param)


def _put(body: Body, name: str, value: Any, *, param: str) -> None:
    if name in body and body[name] != value:
        raise InvalidParameter(param, f"'{param}' is given twice, with different values.")
    body[name] = value


def _object(name: str, value: Any) -> Any:
    """Objects come as objects, as JSON text (vLLM-Omni, LiteLLM) or as Python text (aiperf); a sampler as its name."""
    if name not in OBJECTS or not isinstance(value, str) or not value:
        return value
    if name == "sampler" and not value.lstrip().startswith("{"):
        return {"name": value}
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict):
            return cast(Body, found)
    raise InvalidParameter(name, f"'{name}' is not an object.")


def _flatten(body: Body) -> Body:
    flat = {name: value for name, value in body.items() if name not in NESTED}
    for outer in NESTED:
        inner: Any = body.get(outer) or {}
        if not isinstance(inner, dict):
            raise InvalidParameter(outer, f"'{outer}' is not an object.")
        for name, value in cast(Body, inner).items():
            _put(flat, name, _object(name, value), param=name)
    return flat


Status = Literal["queued", "in_progress", "completed", "failed"]

# Clients loop until they see `completed` or `failed`: no other word may ever end a job (reference/api.md 1.3).
STATUS: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",
}

# vLLM-Omni's bench adds up the keys that end in _gen_ms.
STAGES: dict[str, str] = {
    Phase.ENCODING: "text_encode_gen_ms",
    Phase.SAMPLING: "denoise_gen_ms",
    Phase.DECODING: "vae_decode_gen_ms",
    Phase.UPLOADING: "upload_ms",
}


class Answer(BaseModel):
    """Every key is always sent, so the contract calls every key required."""

    model_config = ConfigDict(from_attributes=True, json_schema_serialization_defaults_required=True)


class VideoError(Answer):
    code: str
    message: str


class Video(Answer):
    """One video on its way. Up to `error` as OpenAI's, every key always there; below it extensions."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str | None
    size: str
    seconds: str
    remixed_from_video_id: str | None = None
    error: VideoError | None

    seed: int
    fps: int
    num_frames: int
    duration_s: float
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str
    sampler: SamplerSettings
    queue_position: int | None = Field(description="how many videos are ahead; null in lists and once it has started")
    phase: Phase | None
    attempt: int
    started_at: int | None
    cancelled_at: int | None
    queue_time_s: float | None
    inference_time_s: float | None
    stage_durations: dict[str, float] = Field(description="milliseconds")
    peak_memory_mb: float | None
    media_type: str | None
    url: str | None = Field(description="our own content address; only if the server knows its public one")
    metadata: dict[str, str]
    user: str | None


class VideoList(Answer):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(Answer):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(Answer):
    """OpenAI's four fields, then what the model can do; the defaults are those of a request that names nothing."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ivmix"
    description: str
    family: str
    sizes: list[str] = Field(description="the first one is the default")
    num_frames: Range
    fps: Range
    num_inference_steps: Range
    guidance_scale: Range
    negative_prompt: str
    sampler: SamplerSettings
    max_prompt_length: int
    can_draw: str | None


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model]


def video(job: Job, *, queue_position: int | None = None, public_base_url: str | None = None) -> Video:
    wanted = job.generation
    return Video(
        id=job.id,
        model=wanted.model,
        status=STATUS[job.state],
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=_seconds(job.completed_at),
        expires_at=_seconds(job.expires_at),
        prompt=wanted.prompt,
        size=f"{wanted.width}x{wanted.height}",
        seconds=f"{wanted.seconds:g}",
        error=_error(job),
        seed=wanted.seed,
        fps=wanted.fps,
        num_frames=wanted.num_frames,
        duration_s=wanted.seconds,
        width=wanted.width,
        height=wanted.height,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        negative_prompt=wanted.negative_prompt,
        sampler=wanted.sampler,
        queue_position=queue_position,
        phase=job.phase,
        attempt=job.attempt,
        started_at=_seconds(job.started_at),
        cancelled_at=_seconds(job.completed_at) if job.state is JobState.CANCELLED else None,
        queue_time_s=None if job.started_at is None else round(job.started_at - job.created_at, 3),
        inference_time_s=round(sum(job.timings.values()), 3) if job.timings else None,
        stage_durations={STAGES.get(name, f"{name}_ms"): round(1000 * s, 3) for name, s in job.timings.items()},
        peak_memory_mb=job.peak_memory_mb,
        media_type=job.output.media_type if job.output else None,
        url=f"{public_base_url.rstrip('/')}/v1/videos/{job.id}/content" if job.output and public_base_url else None,
        metadata=job.metadata,
        user=job.user,
    )


def _error(job: Job) -> VideoError | None:
    if job.state is JobState.CANCELLED:
        return VideoError(code="cancelled", message="The video was cancelled.")
    return VideoError(code=job.error.code, message=job.error.message) if job.error else None


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
