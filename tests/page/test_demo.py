"""The page on `ivmix up` with the demo models: what a person sees after `make serve`."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.page.browsing import Seen, assert_is_drawn


def test_two_clicks_lead_from_the_address_to_a_playing_video(demo_server: str, page: Page, seen: Seen) -> None:
    page.goto(demo_server)
    page.get_by_label("Steps", exact=True).fill("6")  # cheaper; a person need not
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    page.get_by_role("button", name="Create video").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    clip = page.locator("video")
    expect(clip).to_have_attribute("src", re.compile("signature="), timeout=120_000)
    clip.evaluate("video => new Promise(done => { video.loop = false; video.onended = done; video.play() })")
    assert clip.evaluate("video => [video.videoWidth, video.currentTime, video.error]") == [384, 1, None]
    assert seen.event_connections() == 1


def test_a_video_is_previewed_survives_a_reload_and_is_cancelled(demo_server: str, page: Page, seen: Seen) -> None:
    page.goto(demo_server)
    page.get_by_label("Steps", exact=True).fill("200")
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    page.get_by_role("button", name="Create video").click()
    preview = page.get_by_alt_text("Preview of the unfinished video")
    assert_is_drawn(page, preview)
    page.reload()
    assert_is_drawn(page, preview)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_have_text("The video was cancelled.")
    assert seen.event_connections() == 2  # one per load of the page


@pytest.mark.slow  # three clips; test_compare.py compares squares
def test_samplers_of_the_demo_are_compared(demo_server: str, page: Page) -> None:
    page.goto(f"{demo_server}/#/compare")
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    page.get_by_role("button", name="Create 3 videos").click()
    expect(page.locator("video")).to_have_count(3, timeout=120_000)
