"""Records in Redis: a pydantic model stored as a hash with one JSON value per field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from service.redis_scripts import UntypedRedis

Model = TypeVar("Model", bound=BaseModel)
Record = Mapping[bytes, bytes]  # field name -> JSON value, as HGETALL returns it


def encode_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return alternating field names and JSON values, as HSET takes them."""
    return [part for name, value in fields.items() for part in (name, json.dumps(value))]


def decode_record(model: type[Model], record: Record) -> Model | None:
    """Return the model, or None for an empty record. Raises ValueError if the record is damaged."""
    if not record:
        return None
    return model.model_validate({name.decode(): json.loads(value) for name, value in record.items()})


def record_of(reply: list[bytes]) -> Record:
    """Convert the reply of a script that returns HGETALL."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


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


def read_records(redis: UntypedRedis, keys: Iterable[str]) -> list[Record]:
    """Read many hashes in one round trip; one that does not exist is empty."""
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hgetall(key)
        return pipe.execute()
