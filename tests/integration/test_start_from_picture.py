"""A picture through the whole service: upload, worker with the demo pair, clip."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from tests.factories import PROMPT
from tests.integration.test_cli import ivmix
from tests.processes import finished_video
from tests.reference_files import frames_of


def drawn() -> np.ndarray:
    """A red circle on teal, higher than the demo model would put it."""
    y, x = np.mgrid[:384, :384]
    shown = np.full((384, 384, 3), (25, 128, 132), np.uint8)
    shown[(x - 250) ** 2 + (y - 100) ** 2 < 60**2] = (220, 30, 30)
    return shown


def distance(path: Path, shown: np.ndarray) -> float:
    """Of the first frame, per channel in 0..255."""
    return float(np.abs(np.asarray(frames_of(path)[0]).astype(int) - shown).mean())


def test_an_uploaded_picture_becomes_a_clip_that_begins_like_it(demo_server: str, tmp_path: Path) -> None:
    shown, file = drawn(), io.BytesIO()
    Image.fromarray(shown).save(file, "JPEG", quality=95)
    picture, clip = tmp_path / "picture.jpg", tmp_path / "clip.mp4"
    picture.write_bytes(file.getvalue())
    common = {"prompt": PROMPT, "seed": "7", "num_inference_steps": "12", "sampler": "ddim"}
    with httpx2.Client(base_url=demo_server, timeout=60) as http:

        def first_frame(**fields: Any) -> tuple[float, dict[str, Any]]:
            files = {"input_reference": ("p.jpg", file.getvalue())} if "strength" in fields else None
            answer = http.post("/v1/videos", data=common | fields, files=files)
            assert answer.status_code == 200, answer.text
            video = finished_video(http, answer.json()["id"])
            assert video["status"] == "completed", video
            clip.write_bytes(http.get(f"/v1/videos/{video['id']}/content").content)
            return distance(clip, shown), video

        without, _ = first_frame()
        begun, video = first_frame(strength="0.3")
        assert (video["total_steps"], video["step"]) == (3, 3)
        assert begun < 0.4 * without, f"{begun:.1f} and {without:.1f}"
        again = http.post(f"/v1/videos/{video['id']}/run_again").json()
        assert finished_video(http, again["id"])["status"] == "completed"
        repeated = http.get(f"/v1/videos/{again['id']}/content").content
        assert repeated == clip.read_bytes(), "the same picture and seed"
    ran = ivmix(
        *("submit", PROMPT, "--url", demo_server, "--input-reference", str(picture), "--strength", "0.3"),
        *("--sampler", "ddim", "--steps", "12", "--seed", "7", "-o", str(clip)),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    assert distance(clip, shown) < 0.4 * without
