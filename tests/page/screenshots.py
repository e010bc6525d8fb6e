"""`python -m tests.page.screenshots` takes the pictures of docs/page/ from a real `ivmix up` with the demo models.

Two minutes. The pictures are small WebP files; look at them before you commit them.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests import browser
from tests.page.conftest import OPTIONS
from tests.processes import finished_video, ivmix_up

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "page"
MOST_BYTES = 150_000

PROMPTS = (
    "a blue triangle moving up on a pink background",
    "a yellow square moving left on a black background",
    "a purple circle moving down on a white background",
    "a green square moving right on a teal background",
    "a red triangle moving left on a white background",
    "a yellow circle moving up on a teal background",
    "a blue square moving down on a pink background",
)
COMPARED = "a red circle moving right on a teal background"
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"name": "ddim", "network": "image"},
    {"name": "ddim"},
    {"name": "iv-mixed"},
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data,
        ivmix_up(Path(data)) as (_, url),
        httpx2.Client(base_url=url, timeout=30, trust_env=False) as http,
        sync_playwright() as playwright,
    ):
        for i, prompt in enumerate(PROMPTS):
            create(http, prompt, seed=i, num_inference_steps=8)
        compared = [create(http, COMPARED, seed=7, sampler=sampler) for sampler in SAMPLERS]
        launched = playwright.chromium.launch(executable_path=browser.CHROMIUM, args=OPTIONS)
        take_all(launched, url, http, [video["id"] for video in compared])
        launched.close()


def create(http: httpx2.Client, prompt: str, **settings: Any) -> dict[str, Any]:
    made = http.post("/v1/videos", json={"prompt": prompt} | settings).json()
    return finished_video(http, made["id"], timeout_s=300)


def take_all(launched: Browser, url: str, http: httpx2.Client, compared: list[str]) -> None:
    http.post("/v1/videos", json={"prompt": COMPARED, "seed": 1}).raise_for_status()
    running = http.post("/v1/videos", json={"prompt": PROMPTS[0], "seed": 2, "num_inference_steps": 40}).json()["id"]
    page = opened(launched, 1280, 800, "light")
    take(page, f"{url}/#/queue", "queue", wait_for=".progress")
    while http.get(f"/v1/videos/{running}").json()["step"] < 4:
        time.sleep(0.2)
    take(page, f"{url}/#/videos/{running}", "job", wait_for=".progress")
    http.delete(f"/v1/videos/{running}").raise_for_status()
    take(page, f"{url}/#/create", "create", wait_for=".summary")
    take(page, f"{url}/#/gallery", "gallery", wait_for=".tile img")
    page.goto(f"{url}/#/compare?ids={','.join(compared)}")
    for _ in range(3):
        page.get_by_role("button", name="One frame forward").click()
    take(page, page.url, "compare", wait_for=".controls")
    phone = opened(launched, 360, 740, "dark")
    take(phone, f"{url}/#/gallery", "gallery-phone", wait_for=".tile img")


def opened(launched: Browser, width: int, height: int, scheme: Any) -> Page:
    return launched.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()


def take(page: Page, url: str, name: str, *, wait_for: str) -> None:
    if page.url != url:
        page.goto(url)
    page.locator(wait_for).first.wait_for()
    page.wait_for_timeout(1500)  # pictures and previews
    file = FOLDER / f"{name}.webp"
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(file, "WEBP", quality=88, method=6)
    assert file.stat().st_size <= MOST_BYTES, f"{file} has {file.stat().st_size} bytes, at most {MOST_BYTES}"
    print(file)


if __name__ == "__main__":
    main()
