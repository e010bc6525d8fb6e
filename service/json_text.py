"""JSON that a client wrote: a body, or the text of a form field or command line."""

from __future__ import annotations

import json
from typing import Any


class NamedTwice(ValueError):
    """An object has two values under one name. Any choice between them would be a guess."""


def parse_json(text: str | bytes) -> Any:  # Any: whatever the client wrote
    """The value of a JSON text.

    Raises ValueError with the reason, which can be shown: nothing of it but names is the client's.
    """
    if not text.strip():
        raise ValueError("it is empty")
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)
        if b"\\" in (text.encode() if isinstance(text, str) else text):  # large bodies, pictures in base64, have none
            json.dumps(found, ensure_ascii=False).encode()  # nothing can store a lone surrogate
        return found
    except json.JSONDecodeError as e:
        raise ValueError(f"{e.msg[:1].lower()}{e.msg[1:]}, at line {e.lineno}, column {e.colno}") from e
    except UnicodeEncodeError as e:
        raise ValueError("it has a lone surrogate such as \\ud800, which is half of a character") from e
    except UnicodeDecodeError as e:
        raise ValueError(f"it is not in UTF-8 at byte {e.start}") from e
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise NamedTwice(f"{name[:80]!r} is given twice with different values")
        found[name] = value
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > 1000:  # Python converts up to 4,300 digits
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)
