"""Parses request bodies (JSON, multipart, urlencoded) into a VideoRequest."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, cast

from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.types import Message

from service.api.body_reader import MEDIA_FIELDS, REFERENCE, Upload, media_type, read_bytes, unsupported_media
from service.catalog.invalid_parameter import invalid_parameter
from service.errors import InvalidParameter
from service.jobs.model import Generation
from service.jobs.reference import Reference, ReferenceFile
from service.jobs.request import VideoRequest, resolve_aliases
from service.jobs.sampler_settings import RULE
from service.json_text import NamedTwice, parse_json
from service.validation_messages import unknown_parameter

Body = dict[str, Any]  # not validated yet

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_DEPTH = 5  # extra_body[loras][0][networks][]

_SHAPE = ("size", "width", "height", "aspect_ratio", "resolution")

# SGLang's benchmark and vLLM-Omni put everything beyond OpenAI's fields into one of these objects.
NESTED = ("extra_body", "extra_json", "extra_params")
OBJECTS = ("sampler", "metadata", REFERENCE, *NESTED)

# Fields of other servers, with the values that have no effect here.
_OFF = (False, "false", "False", None)
_ABSENT = (None, "")
NO_OPS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("stream", "enable_frame_interpolation", "enable_upscaling", "enable_teacache", "enable_cache_dit"), _OFF
    ),
    **dict.fromkeys(MEDIA_FIELDS, _ABSENT),
    **dict.fromkeys(
        ("guidance_scale_2", "true_cfg_scale", "boundary_ratio", "flow_shift", "max_sequence_length", "quality"),
        _ABSENT,
    ),
}


async def read_body(request: Request, upload: Upload) -> Body:
    """The fields of a body, without the file in `input_reference`, which is `upload.path`.

    Raises InvalidParameter, or HTTPException 400, 413 or 415 for a malformed body.
    """
    kind = media_type(request)
    if kind not in FORMS and not is_json(kind):
        sent = f"not as '{kind[:80]}'" if kind else "with a content-type header"
        raise HTTPException(415, f"Send the body as application/json or {' or '.join(FORMS)}, {sent}.")
    raw = await read_bytes(request, request.app.state.services.settings.max_body_bytes, upload)
    return await _read_form(request, raw) if kind in FORMS else read_json(raw)


def is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def parse(body: Body, source: Generation | None = None) -> VideoRequest:
    """A body without a reference, see `normalise` and `validate`. Raises InvalidParameter."""
    return validate(normalise(body), source)


def normalise(body: Body) -> Body:
    """The fields under the names of VideoRequest, without those that have no effect. Raises InvalidParameter."""
    body = _flatten({name: _object(name, value) for name, value in body.items()})
    for name in NO_OPS.keys() & body.keys():
        if body.pop(name) not in NO_OPS[name]:
            if name in MEDIA_FIELDS:
                raise unsupported_media(name)
            only = json.dumps(NO_OPS[name][0])
            message = f"This server supports '{name}' as {only} only; leave it out."
            raise InvalidParameter(name, message, "unsupported_parameter")
    _reject_booleans(body)
    try:
        return resolve_aliases(body)
    except ValueError as e:
        raise InvalidParameter(None, f"{e}.") from e


def validate(body: Body, source: Generation | None = None, reference: ReferenceFile | None = None) -> VideoRequest:
    """The request of normalised fields.

    Args:
        source: of a remix; it provides the fields that the body omits, all but the prompt.
        reference: replaces `input_reference` of the body, whose value is the client's.

    Raises:
        InvalidParameter: a field has a wrong value.
    """
    body = body | {REFERENCE: reference}
    absent = {name for name in VideoRequest.model_fields if body.get(name) is None}
    given = {name: value for name, value in body.items() if name not in absent}
    if source is not None and "prompt" in given:  # without a prompt, validation below fails as it should
        given = _merge_remix(source, given)
    try:
        return VideoRequest.model_validate(given)
    except ValidationError as e:
        raise invalid_parameter(e, known=VideoRequest.model_fields) from e


def _reject_booleans(value: Any, param: str = "") -> None:
    """No field is a boolean, but pydantic would accept one as the number 0 or 1."""
    if isinstance(value, bool):
        raise InvalidParameter(param, f"Invalid value for '{param}': booleans are not accepted.")
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inside = cast(Body, value).items()
    elif isinstance(value, list):
        inside = enumerate(cast(list[Any], value))
    for name, part in inside:
        _reject_booleans(part, f"{param}.{name}".lstrip("."))


def _merge_remix(source: Generation, given: Body) -> Body:
    """The given fields, plus those of the source that do not contradict them."""
    if given.get("model", source.model) != source.model:  # another model has other defaults
        return {"seed": source.seed} | given
    shared = set(VideoRequest.model_fields) - {"prompt", *_SHAPE, "sampler", "cache"}
    kept = source.model_dump(mode="json", include=shared) | {"clip_skip": source.clip_skip}
    if not given.keys() & set(_SHAPE):
        kept["size"] = f"{source.width}x{source.height}"
    if "seconds" in given:
        del kept["num_frames"]
    changes: Any = given.get("sampler", {})
    if isinstance(changes, dict) and cast(Body, changes).get("name", source.sampler.name) == source.sampler.name:
        changes = _inherited_sampler(source, cast(Body, changes)) | cast(Body, changes)
    sampler = cast(Body, changes) if isinstance(changes, dict) else {}
    if source.sampler.is_image_alone != _is_image_alone(sampler):
        del kept["guidance_scale"]  # the image network by itself has another default
    if (source.sampler.name == "official") != (sampler.get("name") == "official"):
        del kept["negative_prompt"], kept["clip_skip"]  # the released code has none
    if source.reference is not None and REFERENCE not in given:
        kept |= _kept_reference(source.reference)
    return kept | given | {"sampler": changes}


def _inherited_sampler(source: Generation, changes: Body) -> Body:
    """The source's settings, without those of its guidance rule if another one is asked for."""
    own = source.sampler
    drop = RULE if changes.get("guidance_rule", own.guidance_rule) != own.guidance_rule else frozenset[str]()
    return own.model_dump(mode="json", exclude=set(drop))


def _kept_reference(reference: Reference) -> Body:
    """The source's reference with its settings. They are not kept for another file, which may be of another kind."""
    setting = "strength" if reference.use == "start" else "conditioning_scale"
    kept = {REFERENCE: reference.file, "reference_use": reference.use}
    return kept | {setting: getattr(reference, setting)}


def _is_image_alone(sampler: Body) -> bool:
    return (sampler.get("name"), sampler.get("network")) == ("ddim", "image")


def read_json(raw: bytes) -> Body:
    try:
        body = parse_json(raw)
    except ValueError as e:
        raise HTTPException(400, f"The body is not valid JSON: {e}.") from e
    if not isinstance(body, dict):
        raise HTTPException(400, "The body is not a JSON object.")
    return cast(Body, body)


async def _read_form(request: Request, raw: bytes) -> Body:
    async def receive() -> Message:
        return {"type": "http.request", "body": raw}

    async with Request(request.scope, receive).form(max_part_size=len(raw)) as form:
        # `read_bytes` refuses files; browsers send one without name and content for an empty <input type="file">.
        items = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        return parse_brackets(items)


def parse_brackets(items: Iterable[tuple[str, str]]) -> Body:
    """Form keys of the OpenAI SDKs: a=1, b[c]=2, d[]=3, d[]=4 -> {a: 1, b: {c: 2}, d: [3, 4]}.

    Unlike qs-style parsers, rejects contradicting keys instead of merging them. Raises InvalidParameter.
    """
    body: Body = {}
    for name, value in items:
        path = [name.partition("[")[0], *re.findall(r"\[([^\[\]]*)\]", name)]
        if len(path) > MAX_DEPTH:
            raise InvalidParameter(name[:80], unknown_parameter(name, ()), "unknown_parameter")
        try:
            _insert(body, path, value, param=name)
        except (AttributeError, TypeError) as e:
            raise InvalidParameter(name, f"'{name}' is given both as a value and as an object or list.") from e
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
        raise InvalidParameter(param, f"'{param}' is given twice with different values.")
    body[name] = value


def _object(name: str, value: Any) -> Any:
    """Decodes an object sent as JSON text (vLLM-Omni, LiteLLM) or Python repr (aiperf), or a sampler sent by name."""
    if name not in OBJECTS or not isinstance(value, str) or not value:
        return value
    if name == "sampler" and not value.lstrip().startswith("{"):
        return {"name": value}
    if name == REFERENCE and not value.lstrip().startswith("{"):
        return value  # a data URL or an id
    for read in (parse_json, ast.literal_eval):
        try:
            found = read(value)
        except NamedTwice as e:
            raise InvalidParameter(name, f"In '{name}' {e}.") from e
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
