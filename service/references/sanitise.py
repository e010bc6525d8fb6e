"""From an uploaded file to the one that is stored."""

from __future__ import annotations

from pathlib import Path

from service.jobs.reference import ReferenceFile
from service.references.clip_process import sanitise_clip
from service.references.kinds import PICTURES, kind_of
from service.references.limits import Limits


def sanitise(source: Path, target: Path, limits: Limits) -> ReferenceFile:
    """Write what `source` shows to `target`, as PNG or MP4 without metadata. May take seconds of CPU time.

    Args:
        source: a file of any bytes.
        target: overwritten, in an existing folder.

    Returns:
        What `target` is.

    Raises:
        InvalidParameter: the file is of another kind, beyond the limits or damaged; the message is for the client.
    """
    kind = kind_of(source)
    if kind not in PICTURES:
        return sanitise_clip(source, target, kind, limits)
    from service.references.pictures import sanitise_picture  # Pillow takes time to import

    return sanitise_picture(source, target, kind, limits)
