"""Runs `service.references.clips` in a separate process: what a damaged clip does to FFmpeg stays there."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from service.errors import InvalidParameter
from service.jobs.reference import ReferenceFile
from service.references.kinds import Kind
from service.references.limits import FIELD, Limits, refused

log = logging.getLogger("ivmix.references")

TIMEOUT_S = 75.0
REFUSED = 3  # exit status: standard output is the sentence for the client


def sanitise_clip(source: Path, target: Path, kind: Kind, limits: Limits) -> ReferenceFile:
    """As `sanitise`."""
    numbers = (limits.bytes, limits.pixels, limits.frames)
    command = [sys.executable, "-m", "service.references.clips", source, target, kind, *map(str, numbers)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as e:
        raise refused("takes too long to read", "send a shorter or smaller clip") from e
    if ran.returncode == REFUSED:
        raise InvalidParameter(FIELD, ran.stdout.strip())
    try:
        return ReferenceFile.model_validate_json(ran.stdout)
    except ValidationError as e:
        log.warning("a clip could not be read: status %d, %s", ran.returncode, ran.stderr.strip()[-300:])
        raise refused("cannot be read as a clip", "send it as MP4 with H.264") from e
