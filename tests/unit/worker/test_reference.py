"""Generations that begin at a picture or clip: reading the file, resuming, progress, and little memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from service.jobs.model import Generation, Phase
from service.storage import sha256_of
from tests.factories import make_generation
from worker.child.checkpoint_file import Checkpoint
from worker.child.engine import Engine
from worker.child.mp4 import read_mp4, write_mp4
from worker.child.reference_latents import UnusableReference, read_frames

FRAMES, STEPS = 2, 4


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red disc on white, 384x384."""
    file = tmp_path_factory.mktemp("reference") / "picture.png"
    y, x = np.mgrid[:384, :384]
    pixels = np.full((384, 384, 3), 255, np.uint8)
    pixels[(x - 192) ** 2 + (y - 192) ** 2 < 80**2] = (220, 30, 30)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def clip(picture: Path) -> Path:
    """Three frames, 64x48: red, green, blue."""
    colours = np.array([(220, 30, 30), (30, 200, 30), (30, 30, 220)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (3, 48, 64, 3))
    write_mp4(np.ascontiguousarray(frames), picture.with_name("clip.mp4"), fps=8)
    return picture.with_name("clip.mp4")


def generation(file: Path, strength: float = 0.75, **fields: Any) -> Generation:
    media_type = "image/png" if file.suffix == ".png" else "video/mp4"
    reference = {"sha256": sha256_of(file), "media_type": media_type, "strength": strength}
    return make_generation(**{"num_frames": FRAMES, "num_inference_steps": STEPS, "reference": reference, **fields})


def test_the_less_strength_the_more_the_clip_resembles_its_picture(engine: Engine, picture: Path) -> None:
    shown = torch.from_numpy(np.array(Image.open(picture))).float()
    distance = [
        (engine.generate(generation(picture, strength), reference=picture).frames[0] - shown).abs().mean().item()
        for strength in (0.25, 0.5, 1.0)
    ]
    assert distance[0] < 20 < distance[2]
    assert distance == sorted(distance)


def test_only_the_steps_that_run_are_counted(engine: Engine, picture: Path) -> None:
    reported: list[tuple[Phase, int, int]] = []
    wanted = generation(picture)
    clip = engine.generate(wanted, lambda *progress: reported.append(progress), reference=picture)
    sampling = [(Phase.SAMPLING, i, 3) for i in range(4)]
    assert reported == [(Phase.ENCODING, 0, 3), *sampling, (Phase.DECODING, 3, 3)]
    assert wanted.total_steps == 3
    assert set(clip.timings) == {Phase.ENCODING, Phase.SAMPLING, Phase.DECODING}


RUNS: dict[str, dict[str, Any]] = {
    "noise in every step": {"combination": "R-I", "order": "goback_first"},
    "second-order solver": {"name": "ddim", "solver": "dpmpp-2m"},
}


@pytest.mark.parametrize("sampler", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_run_resumed_after_any_step_gives_the_same_bytes(
    engine: Engine, picture: Path, clip: Path, tmp_path: Path, sampler: dict[str, Any], kind: str
) -> None:
    file = picture if kind == "picture" else clip
    wanted = generation(file, sampler=sampler)
    states: list[Checkpoint] = []
    undisturbed = engine.sample(wanted, on_step=states.append, reference=file).latents
    assert [state.step for state in states] == [1, 2, 3]
    for state in states:
        state.write(tmp_path / "checkpoint")
        done: list[int] = []
        resumed = engine.sample(
            wanted, on_step=lambda c, done=done: done.append(c.step), resume=tmp_path / "checkpoint", reference=file
        )
        assert torch.equal(resumed.latents, undisturbed)
        assert done == list(range(state.step + 1, 4))


def test_checkpoint_of_another_reference_or_strength_is_not_used(
    engine: Engine, picture: Path, clip: Path, tmp_path: Path
) -> None:
    sampler = {"name": "ddim"}
    states: list[Checkpoint] = []
    engine.sample(generation(picture, sampler=sampler), on_step=states.append, reference=picture)
    states[0].write(tmp_path / "checkpoint")
    for file, strength, steps in ((clip, 0.75, 3), (picture, 0.8, 3), (picture, 0.5, 2)):
        done: list[Checkpoint] = []
        other = generation(file, strength, sampler=sampler)
        engine.sample(other, on_step=done.append, reference=file, resume=tmp_path / "checkpoint")
        assert [state.step for state in done] == list(range(1, steps + 1))


def test_file_that_the_generation_needs_is_asked_for(engine: Engine, picture: Path) -> None:
    with pytest.raises(ValueError, match="pass its file as reference="):
        engine.sample(generation(picture))


@contextmanager
def room_for_one_frame(engine: Engine) -> Iterator[list[int]]:
    fitted: list[int] = []

    def check(_module: object, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError(f"tried to allocate {len(args[0])} frames")
        fitted.append(len(args[0]))

    hook = engine.models.vae.encoder.register_forward_pre_hook(check)
    try:
        yield fitted
    finally:
        hook.remove()


def test_autoencoder_without_room_encodes_one_frame_at_a_time(engine: Engine, clip: Path) -> None:
    wanted = generation(clip, sampler={"name": "ddim"})
    undisturbed = engine.generate(wanted, reference=clip).frames
    with room_for_one_frame(engine) as fitted:
        frames = engine.generate(wanted, reference=clip).frames
    assert fitted == [1] * FRAMES
    assert (frames.int() - undisturbed.int()).abs().max() <= 2  # other batches, other rounding


def test_picture_is_encoded_once_for_all_frames(engine: Engine, picture: Path) -> None:
    wanted = generation(picture, num_frames=8, sampler={"name": "ddim"}, num_inference_steps=2)
    with room_for_one_frame(engine) as fitted:
        engine.sample(wanted, reference=picture)
    assert fitted == [1]


def test_pictures_of_another_shape_are_scaled_to_cover_and_cut_to_their_centre(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (10, 200, 60)
    file = tmp_path / "wide.png"
    Image.fromarray(wide).save(file)
    frames = read_frames(file, "image/png", 8, (16, 16))
    assert frames.shape == (1, 16, 16, 3)
    assert frames.dtype is torch.uint8
    assert (frames[:, :, 5:-5] == torch.tensor([10, 200, 60], dtype=torch.uint8)).all()


def test_a_clip_gives_its_first_frames_in_their_colours(clip: Path) -> None:
    frames = read_frames(clip, "video/mp4", 2, (32, 32))
    assert frames.shape == (2, 32, 32, 3)
    expected = read_mp4(clip)[:2].mean((1, 2))
    assert np.abs(frames.numpy().mean((1, 2)) - expected).max() <= 1


def test_clip_with_too_few_frames_is_refused(clip: Path) -> None:
    with pytest.raises(UnusableReference, match="num_frames=4: the clip in input_reference has only 3 frames"):
        read_frames(clip, "video/mp4", 4, (32, 32))


def test_files_of_other_kinds_damaged_and_huge_ones_are_refused_with_a_sentence(
    engine: Engine, picture: Path, clip: Path, tmp_path: Path
) -> None:
    files: dict[str, tuple[Path, str]] = {}
    for name, data, media_type in (
        ("clip as picture", clip.read_bytes(), "image/png"),
        ("picture as clip", picture.read_bytes(), "video/mp4"),
        ("half a picture", picture.read_bytes()[:700], "image/png"),
        ("half a clip", clip.read_bytes()[: clip.stat().st_size // 2], "video/mp4"),
        ("playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "video/mp4"),
        ("nothing", b"", "image/png"),
    ):
        files[name] = tmp_path / name, media_type
        files[name][0].write_bytes(data)
    for path, media_type in files.values():
        with pytest.raises(UnusableReference, match="input_reference cannot be decoded as") as raised:
            read_frames(path, media_type, 1, (16, 16))
        failed = engine.failed_message(raised.value)
        assert (failed.code, failed.can_retry) == ("invalid_input", False)
    huge = bytearray(picture.read_bytes())
    huge[16:24] = (9000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (tmp_path / "huge").write_bytes(huge)
    with pytest.raises(UnusableReference, match="9000x9000 pixels"):
        read_frames(tmp_path / "huge", "image/png", 1, (16, 16))
