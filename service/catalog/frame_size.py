"""Chooses the frame size of a request among the sizes of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import gcd

from service.errors import InvalidParameter
from service.jobs.request import VideoRequest


def choose_size(request: VideoRequest, sizes: Sequence[str]) -> tuple[int, int]:
    """Width and height that satisfy every given field: size, width and height, aspect_ratio, resolution.

    Raises InvalidParameter naming what is possible.
    """
    param, wanted = _named_size(request)
    if wanted is None:
        return _first_fitting(request, sizes)
    if wanted not in sizes:
        message = f"Invalid value for '{param}': '{wanted[:40]}'. Supported sizes are: {', '.join(sizes)}."
        raise InvalidParameter(param, message)
    size = _sides(wanted)
    if request.width and (request.width, request.height) != size:
        raise InvalidParameter(
            "width", f"width and height are {request.width}x{request.height}, but size is {wanted}; send one."
        )
    for name in ("aspect_ratio", "resolution"):
        if not _fits(size, name, getattr(request, name)):
            message = f"{name} is '{getattr(request, name)}', but {param} is {wanted}, which is {_label(name, size)}."
            raise InvalidParameter(name, f"{message} Leave one out.")
    return size


def _named_size(request: VideoRequest) -> tuple[str, str | None]:
    """The field that names a size, and the size."""
    if (request.width is None) != (request.height is None):
        missing = "width" if request.width is None else "height"
        raise InvalidParameter(missing, "width and height must be sent together.")
    if request.size is not None:
        return "size", request.size
    return "width", f"{request.width}x{request.height}" if request.width else None


def _first_fitting(request: VideoRequest, sizes: Sequence[str]) -> tuple[int, int]:
    """The first size with the wanted shape: the default one if no shape is given."""
    fitting = [_sides(size) for size in sizes]
    for name in ("aspect_ratio", "resolution"):
        wanted, before = getattr(request, name), fitting
        fitting = [size for size in before if _fits(size, name, wanted)]
        if not fitting:
            possible = ", ".join(f"{_label(name, size)} ({size[0]}x{size[1]})" for size in before)
            raise InvalidParameter(name, f"Invalid value for '{name}': '{wanted}'. Supported are: {possible}.")
    return fitting[0]


def _fits(size: tuple[int, int], name: str, wanted: str | None) -> bool:
    """Whether a size has exactly the wanted aspect ratio ("16:9") or resolution ("480p" or "640x480")."""
    if wanted is None:
        return True
    width, height = size
    if name == "resolution":
        lines = re.fullmatch(r"(\d{1,5})[pP]?", wanted, re.ASCII)
        return int(lines[1]) == min(size) if lines else wanted == f"{width}x{height}"
    ratio = re.fullmatch(r"(\d{1,5})[:x/](\d{1,5})", wanted, re.ASCII)
    return ratio is not None and int(ratio[2]) > 0 and width * int(ratio[2]) == height * int(ratio[1])


def _label(name: str, size: tuple[int, int]) -> str:
    """The value of `name` that means this size."""
    divisor = gcd(*size)
    return f"{min(size)}p" if name == "resolution" else f"{size[0] // divisor}:{size[1] // divisor}"


def _sides(size: str) -> tuple[int, int]:
    width, height = map(int, size.split("x"))
    return width, height
