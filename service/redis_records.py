"""Records in Redis: a pydantic model stored as a hash with one JSON value per field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from redis.exceptions import ResponseError

from service.redis_scripts import UntypedRedis

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Record = Mapping[bytes, bytes]  # field name -> JSON value, as HGETALL returns it

NOT_A_HASH: Record = {b"": b""}  # stands for a key of another type: a record that is damaged as a whole


def encode_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return alternating field names and JSON values, as HSET takes them."""
    return [part for name, value in fields.items() for part in (name, json.dumps(value))]


def decode_record(model: type[Model], record: Record) -> Model | None:
    """Return the model, or None for an empty record. Raises ValueError if the record is damaged."""
    if not record:
        return None
    try:
        return model.model_validate({name.decode(): json.loads(value) for name, value in record.items()})
    except RecursionError as e:
        raise ValueError("a value is nested too deeply") from e


def decode_value(value: bytes) -> Any:
    """Return one decoded value, None if it is damaged."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def read_page(
    redis: UntypedRedis, index: str, *, limit: int, after: str | None = None, newest_first: bool = True
) -> tuple[list[str], bool]:
    """Read one page of an index, a sorted set whose members all have score 0 and so sort by id, that is by age.

    Args:
        limit: most ids to return.
        after: id after which the page starts; it need not exist any more.

    Returns:
        The ids, and whether more follow.
    """
    first, last = ("+", "-") if newest_first else ("-", "+")
    start = f"({after}" if after else first
    ids = redis.zrange(index, start, last, desc=newest_first, bylex=True, offset=0, num=limit + 1)
    return [member.decode() for member in ids[:limit]], len(ids) > limit


def read_page_of(
    redis: UntypedRedis,
    index: str,
    read: Callable[[list[str]], Iterable[T | None]],
    *,
    limit: int,
    after: str | None = None,
) -> tuple[list[T], bool]:
    """Read one page of records, newest first; records that are gone or damaged do not shorten it.

    Args:
        read: returns the record of each id, or None.
        after: see `read_page`.
    """
    found: list[T] = []
    has_more = True
    while has_more and len(found) <= limit:
        ids, has_more = read_page(redis, index, limit=limit + 1, after=after)
        found += [record for record in read(ids) if record is not None]
        after = ids[-1] if ids else after
    return found[:limit], len(found) > limit


def read_record(redis: UntypedRedis, key: str) -> Record:
    """Read one hash; see `read_records`."""
    return read_records(redis, [key])[0]


def read_records(redis: UntypedRedis, keys: Iterable[str]) -> list[Record]:
    """Read many hashes in one round trip. One that does not exist is empty; a key of another type has one field."""
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)
        return [_checked(reply) for reply in pipe.execute(raise_on_error=False)]


def _checked(reply: Any) -> Record:
    if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
        return NOT_A_HASH
    if isinstance(reply, Exception):
        raise reply
    return reply
