"""The public video writer and reader. Implementation in worker/child/mp4.py and reference_latents.py."""

from worker.child.mp4 import read_mp4, write_mp4, write_spritesheet, write_thumbnail
from worker.child.reference_latents import read_frames

__all__ = ["read_frames", "read_mp4", "write_mp4", "write_spritesheet", "write_thumbnail"]
