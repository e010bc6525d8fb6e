"""The public video writer. Implementation in worker/child/mp4.py."""

from worker.child.mp4 import read_mp4, write_mp4, write_spritesheet, write_thumbnail

__all__ = ["read_mp4", "write_mp4", "write_spritesheet", "write_thumbnail"]
