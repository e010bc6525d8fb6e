"""The public video writer. Implementation in worker/child/video_encoder.py."""

from worker.child.video_encoder import read_mp4, write_mp4, write_spritesheet, write_thumbnail

__all__ = ["read_mp4", "write_mp4", "write_spritesheet", "write_thumbnail"]
