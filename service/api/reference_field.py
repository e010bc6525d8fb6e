"""The values of `input_reference` besides a file: a data URL, or a video's id, in the forms of several clients."""

from __future__ import annotations

import binascii
import re
from typing import Any, cast

from service.errors import BodyTooLarge, InvalidParameter

FIELD = "input_reference"
_KEYS = ("image_url", "video_id", "file_id")
_VIDEO_ID = re.compile(r"video_[0-9a-f]{32}")
_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w.+=/-]{1,100}){0,4}?;base64,", re.IGNORECASE)
_FORMS = "a file in a multipart form, a data URL (data:image/png;base64,...), or the id of a video"


def text_of(value: Any) -> str | None:
    """The data URL or id in a value: a text, or {"image_url": ...}, {"video_id": ...}, {"file_id": ...}.

    None: nothing is given. Raises InvalidParameter.
    """
    param = FIELD
    if isinstance(value, dict):
        given = cast(dict[str, Any], value)
        named = {key: part for key, part in given.items() if part not in (None, "")}
        if unknown := sorted(set(given) - set(_KEYS)):
            message = f"Unknown parameter: '{FIELD}.{unknown[0][:80]}'; known are {', '.join(_KEYS)}."
            raise InvalidParameter(f"{FIELD}.{unknown[0][:80]}", message, "unknown_parameter")
        if len(named) > 1:
            raise InvalidParameter(FIELD, f"'{FIELD}' has {' and '.join(sorted(named))}; send one of them.")
        if not named:
            return None
        (key, value) = next(iter(named.items()))
        param = f"{FIELD}.{key}"
    if value in (None, ""):
        return None
    if not isinstance(value, str):
        raise InvalidParameter(param, f"'{param}' is not a text; send {_FORMS}.")
    if value.lower().startswith(("http://", "https://")):
        message = f"'{param}' is a URL of another server, which this one does not fetch; send the file itself."
        raise InvalidParameter(param, message)
    if value[:5].lower() != "data:" and not _VIDEO_ID.fullmatch(value):
        raise InvalidParameter(param, f"'{param}' is neither a data URL nor the id of a video; send {_FORMS}.")
    return value


def is_video_id(text: str) -> bool:
    return _VIDEO_ID.fullmatch(text) is not None


def decoded(data_url: str, most: int) -> bytes:
    """The bytes of a data URL.

    Args:
        most: limit in bytes.

    Raises:
        InvalidParameter: it is not in Base64.
        BodyTooLarge: they are too many.
    """
    head = _DATA_URL.match(data_url[:600])
    if head is None:
        message = f"The data URL in '{FIELD}' is not in Base64; it begins with data:image/png;base64, or the like."
        raise InvalidParameter(FIELD, message)
    try:
        data = binascii.a2b_base64(data_url[head.end() :], strict_mode=True)
    except ValueError as e:  # binascii.Error, or a letter beyond ASCII
        raise InvalidParameter(FIELD, f"The data URL in '{FIELD}' is not valid Base64: {e}.") from e
    if len(data) > most:
        raise BodyTooLarge(FIELD, f"The file in '{FIELD}' is larger than {most} bytes (IVMIX_MAX_REFERENCE_BYTES).")
    return data
