"""The API's own pages and files in a real browser."""

from __future__ import annotations

from playwright.sync_api import Page

from tests.page.browsing import Seen
from tests.page.site import Site


def test_a_signed_url_plays_to_its_end(site: Site, page: Page, seen: Seen) -> None:
    video = site.finished(seed=3)
    page.goto(site.url + video["download_url"])
    player = page.locator("video")
    player.evaluate("video => new Promise(done => { video.onended = done; video.currentTime = 0; video.play() })")
    assert player.evaluate("video => [video.videoWidth, video.currentTime, video.error]") == [384, 1, None]
