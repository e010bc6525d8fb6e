"""`python -m demo.picture` draws the README's demo/comparison.png: the frames of each model alone and of IV-mixed."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from demo.run import ARMS, PROMPT, SEED
from service.catalog.registry import ModelRegistry
from service.jobs.request import VideoRequest
from worker.child.engine import Engine
from worker.compare import SAMPLERS, TITLES

FILE = Path(__file__).parent / "comparison.png"
SIDE, MARGIN, GAP = 128, 192, 4  # px: of a frame, of the column of titles, between rows


def main() -> None:
    engine = Engine(ModelRegistry.load().get("demo"), torch.device("cpu"))
    picture = Image.new("RGB", (MARGIN + 8 * SIDE, len(ARMS) * (SIDE + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=20)
    for row, name in enumerate(ARMS):
        top = row * (SIDE + GAP)
        pen.text((8, top + SIDE / 2), TITLES[name], fill="black", font=font, anchor="lm")
        request = VideoRequest(prompt=PROMPT, seed=SEED, sampler=SAMPLERS[name])
        frames = engine.generate(engine.models.entry.resolve(request)).frames.numpy()
        for i, pixels in enumerate(frames):
            frame = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.paste(frame, (MARGIN + i * SIDE, top))
    picture.save(FILE, optimize=True)


if __name__ == "__main__":
    main()
