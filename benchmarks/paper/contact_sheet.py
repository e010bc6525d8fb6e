"""Contact sheets: the frames of a prompt, a strip per arm, for the best and the worst prompts of the reference arm."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmarks.paper.arms import COMPUTE_MATCHED, REFERENCES, Arm
from benchmarks.paper.clips import Frames, read_frames
from benchmarks.paper.feature_cache import cached_features
from benchmarks.paper.networks import ClipNetwork
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.results import Question
from benchmarks.paper.run_folder import ClipKey, RunFolder

SHOWN_FRAMES, FRAME_WIDTH = 8, 80
QUALITY = 70  # of WebP


def ranked_prompts(folder: RunFolder, question: Question, network: ClipNetwork, arms: Sequence[Arm]) -> list[Prompt]:
    """Best first: by the score of the reference arm, then by the distance of its features from the real mean."""
    names = [arm.name for arm in arms]
    arm = next((name for name in REFERENCES if name in names), COMPUTE_MATCHED)
    columns, prompts = network.columns, question.asked
    mean = network.real(prompts).reference[columns.space].mean((0, 1))

    def rank(prompt: Prompt) -> tuple[float, float]:
        keys = [ClipKey(arm, prompt.id, repeat) for repeat in range(question.clips)]
        clips = [cached_features(folder, key, network, question.suffix) for key in keys]
        score = 0.0 if columns.score is None else float(np.mean([clip.scores[columns.score] for clip in clips]))
        far = float(np.mean([np.square(clip.spaces[columns.space] - mean).sum() for clip in clips]))
        return -score, far

    return sorted(prompts, key=rank)


def strip(folder: RunFolder, key: ClipKey, suffix: str) -> str:
    """Frames of one clip next to each other, as a data URL of a WebP picture."""
    frames = read_frames(folder.clip(key, suffix))
    chosen = np.linspace(0, len(frames) - 1, min(SHOWN_FRAMES, len(frames))).round().astype(int)
    stream = io.BytesIO()
    _side_by_side(frames[chosen]).save(stream, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _side_by_side(frames: Frames) -> Image.Image:
    count, height, width, _ = frames.shape
    row = Image.fromarray(np.concatenate(list(frames), axis=1))
    return row.resize((count * FRAME_WIDTH, round(height * FRAME_WIDTH / width)), Image.Resampling.BOX)
