"""The stored picture or clip that a video starts from -> frames of the networks' size -> latents.

The file comes from a client, so its decoding is bounded: sizes are checked before pixels are decoded, and of a clip
only the frames that are needed are decoded, one at a time.
"""

# pyright: reportUnknownMemberType=false
# PyAV is typed in part.
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from service.errors import ServiceError
from service.jobs.model import Generation
from worker.networks.loading import AnyModels, TransformerModels
from worker.networks.sparse_control import FirstFrame
from worker.networks.video_transformers.first_frame import Condition

MOST_PIXELS = 2**26  # of one frame, 8192x8192: 200 MB decoded


class UnusableReference(ServiceError):
    """The stored file cannot be decoded, or does not fit the generation."""

    code = "invalid_input"


def reference_latents(
    models: AnyModels, generation: Generation, path: Path, *, frames_per_call: int | None = None
) -> Tensor:
    """Clean latents of the generation's reference: of a picture, the same in every frame; of a clip, its first frames.

    Args:
        path: the file that `generation.reference` describes.
        frames_per_call: frames that the autoencoder encodes together; None: what fits in memory.

    Returns:
        (1, C, F, h, w) float32 on the models' device, of the shape `models.latents_shape(generation)`.

    Raises:
        UnusableReference: the file is no such picture or clip, is too large, or has fewer frames than the generation.
        NotFinite: the autoencoder returned NaN or infinity.
    """
    assert generation.reference is not None
    count, upscale = generation.num_frames, models.entry.upscale
    size = generation.width // upscale, generation.height // upscale
    frames = read_frames(path, generation.reference.media_type, count, size)
    if models.compresses_time:  # a still clip, which the autoencoder knows otherwise than a picture
        frames = frames.expand(count, -1, -1, -1)
    latents = models.encode_frames(frames, frames_per_call=frames_per_call)
    return latents.expand(models.latents_shape(generation)).contiguous()


def first_frame_of(
    models: AnyModels, generation: Generation, path: Path, *, low_memory: bool = False
) -> FirstFrame | Condition:
    """What the video model keeps: the generation's reference, or its first frame. Raises as `reference_latents`.

    Args:
        low_memory: whether an autoencoder that encodes whole clips does so in tiles.
    """
    reference, upscale = generation.reference, models.entry.upscale
    assert reference is not None
    size = generation.width // upscale, generation.height // upscale
    picture = read_frames(path, reference.media_type, 1, size)
    if isinstance(models, TransformerModels):
        return models.first_frame(picture, generation, tiled=low_memory)
    return models.first_frame(picture, generation)


def read_frames(path: Path, media_type: str, count: int, size: tuple[int, int]) -> Tensor:
    """The picture as one frame, or the first `count` frames of the clip.

    Args:
        media_type: "image/png" or "video/mp4"; other contents are refused.
        size: (width, height) in pixels. Frames are scaled by Lanczos to cover it, then cut to their centre.

    Returns:
        (1, H, W, 3) or (count, H, W, 3) uint8.

    Raises:
        UnusableReference: see `reference_latents`.
    """
    pictures = _picture(path) if media_type == "image/png" else _clip(path, count)
    try:
        fitted = [np.asarray(ImageOps.fit(picture, size, Image.Resampling.LANCZOS)) for picture in pictures]
        if not fitted:
            raise ValueError("no frames")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:  # PyAV's errors are among them
        raise UnusableReference(f"input_reference cannot be decoded as {media_type}; send another file.") from e
    if media_type != "image/png" and len(fitted) < count:
        raise UnusableReference(
            f"num_frames={count}: the clip in input_reference has only {len(fitted)} frames; lower num_frames to that, "
            "or send a longer clip."
        )
    return torch.from_numpy(np.stack(fitted))


def _picture(path: Path) -> Iterator[Image.Image]:
    with Image.open(path, formats=["PNG"]) as picture:
        _check_pixels(*picture.size)
        yield picture.convert("RGB")


def _clip(path: Path, count: int) -> Iterator[Image.Image]:
    # Only files of this container: no playlists, and nothing that they name is opened.
    with av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        _check_pixels(stream.codec_context.width, stream.codec_context.height)
        for _, frame in zip(range(count), container.decode(stream), strict=False):
            _check_pixels(frame.width, frame.height)
            yield frame.to_image()


def _check_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise UnusableReference(
            f"input_reference is {width}x{height} pixels; at most {MOST_PIXELS} pixels are decoded, send a smaller one."
        )
