"""Uploaded pictures and clips: recognised by their bytes, checked, and written again without metadata.

Only this package opens them. Pictures are read in a thread of the caller, clips in a separate process, which can be
ended. Pillow and PyAV are imported when the first file arrives.
"""

from __future__ import annotations

from service.references.limits import Limits
from service.references.sanitise import sanitise

__all__ = ["Limits", "sanitise"]
