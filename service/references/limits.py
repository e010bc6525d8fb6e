"""What an uploaded file may be, and the error about one that is not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import InvalidParameter

if TYPE_CHECKING:  # the process that reads a clip needs no settings
    from service.settings import Settings

FIELD = "input_reference"
MOST_ASPECT = 20  # longer side / shorter side: a worker scales the shorter one up to the video's
STORED_PIXELS = 2**22  # of a stored picture; larger ones are scaled down, since no model draws so many
STORED_CLIP_PIXELS = 2**21  # of a frame of a stored clip


@dataclass(frozen=True)
class Limits:
    """
    Args:
        bytes: of a stored clip.
        pixels: width x height of a picture or a frame.
        frames: of a clip that are kept.
    """

    bytes: int
    pixels: int
    frames: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.max_reference_bytes, settings.max_reference_pixels, settings.max_reference_frames)

    def check_size(self, width: int, height: int) -> None:
        """Raises InvalidParameter."""
        if width < 1 or height < 1:
            raise refused("has no pixels")
        if width * height > self.pixels:
            raise refused(
                f"has {width}x{height} pixels, more than the limit of {self.pixels} (IVMIX_MAX_REFERENCE_PIXELS)",
                "scale it down",
            )
        if max(width, height) > MOST_ASPECT * min(width, height):
            raise refused(f"has {width}x{height} pixels: one side is over {MOST_ASPECT} times the other", "crop it")


def refused(problem: str, way_out: str = "send another file") -> InvalidParameter:
    """The error about a file, as a sentence: "The file in input_reference ...; ..."."""
    return InvalidParameter(FIELD, f"The file in {FIELD} {problem}; {way_out}.")


def scaled(width: int, height: int, most: int) -> tuple[int, int]:
    """The size with at most `most` pixels and about the same shape; the same one if it fits."""
    factor = min(1.0, (most / (width * height)) ** 0.5)
    return max(1, int(width * factor)), max(1, int(height * factor))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
