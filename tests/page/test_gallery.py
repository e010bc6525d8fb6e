"""The gallery with many videos: paging, filters, playing, deleting and live updates."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.browsing import Seen, assert_accessible, assert_fits, give_session
from tests.page.many_videos import write_videos
from tests.page.site import PROMPT, Site

NUMBER = 250
PAGE = 48


def key_with_videos(site: Site, number: int) -> str:
    """A key whose every fifth video failed."""
    record, key = site.services.keys.create("gallery")
    write_videos(site, number, owner=record.id, files_of=site.finished(seed=3)["id"])
    return key


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return key_with_videos(site, NUMBER)


@pytest.fixture
def gallery(site: Site, page: Page, key: str) -> Page:
    return open_gallery(site, page, key)


def open_gallery(site: Site, page: Page, key: str) -> Page:
    give_session(page, site, key)
    page.goto(f"{site.keyed_url}/#/gallery")
    expect(tiles(page)).to_have_count(PAGE)
    return page


def tiles(page: Page) -> Locator:
    return page.locator(".tile")


@pytest.mark.parametrize("number", [150, pytest.param(500, marks=pytest.mark.slow)])
def test_videos_come_page_by_page_and_cost_nothing_outside_of_the_window(
    site: Site, page: Page, seen: Seen, number: int
) -> None:
    gallery = open_gallery(site, page, key_with_videos(site, number))
    shown = tiles(gallery)
    while (count := shown.count()) < number:
        gallery.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(shown.nth(count)).to_be_attached()
    expect(gallery.get_by_role("status").filter(has_text=f"{number} videos")).to_be_attached()
    assert gallery.locator("video").count() == 0  # only the one under the pointer exists
    assert [tile.get_attribute("id") for tile in shown.all()[:2]] == sorted(
        (tile.get_attribute("id") for tile in shown.all()[:2]), reverse=True
    )
    lists = [request for request in seen.requests if "/v1/videos?" in request.url]
    assert len(lists) == -(-number // PAGE)
    assert seen.event_connections() == 1


def test_filters_are_in_the_url_and_survive_a_reload(gallery: Page) -> None:
    gallery.get_by_role("button", name="Failed", exact=True).click()
    expect(gallery).to_have_url(re.compile(r"#/gallery\?status=failed$"))
    expect(gallery.locator(".tile .badge.failed")).to_have_count(PAGE)
    gallery.get_by_role("searchbox", name="Search prompts").fill("purple circle")
    expect(tiles(gallery)).to_have_count(17)  # every 15th video
    gallery.get_by_text("More filters").click()
    gallery.get_by_label("Metadata").fill("row=9")
    gallery.get_by_label("Metadata").press("Enter")
    expect(tiles(gallery)).to_have_count(1)
    gallery.reload()
    expect(tiles(gallery)).to_have_count(1)
    expect(gallery.get_by_label("Metadata")).to_have_value("row=9")
    gallery.get_by_label("Created on or after").fill("2099-01-01")
    expect(gallery.get_by_text("No videos match these filters")).to_be_visible()
    gallery.get_by_role("button", name="Clear filters").first.click()
    expect(tiles(gallery)).to_have_count(PAGE)


def test_the_video_under_the_pointer_or_with_the_focus_plays(gallery: Page) -> None:
    link = tiles(gallery).filter(has=gallery.locator("img")).first.get_by_role("link", name="Details")
    for start, stop in ((link.hover, gallery.mouse.move), (link.focus, lambda *_: link.blur())):
        start()
        clip = link.locator("video")
        clip.evaluate("video => new Promise(done => video.addEventListener('timeupdate', done))")
        assert clip.evaluate("video => [video.videoWidth, video.paused]") == [384, False]
        stop(0, 0)
        expect(clip).to_have_count(0)


def test_deleting_asks_first_and_keeps_the_place(site: Site, gallery: Page, key: str) -> None:
    first, second = (tiles(gallery).nth(i).get_attribute("id").removeprefix("tile-") for i in (0, 1))
    button = tiles(gallery).first.get_by_role("button", name="Delete")
    dialog = gallery.get_by_role("dialog", name="Delete this video?")
    button.click()
    assert_accessible(gallery)
    gallery.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    button.click()
    dialog.get_by_role("button", name="Delete").click()
    expect(gallery.locator(f"#tile-{first}")).to_have_count(0)
    expect(gallery.locator(f"#tile-{second} a").first).to_be_focused()
    assert get(site, key, first).status_code == 404


def test_new_videos_appear_and_become_pictures_without_a_reload(site: Site, gallery: Page, key: str) -> None:
    body = {"prompt": PROMPT, "num_inference_steps": 4}
    newest = tiles(gallery).first
    with site.held():
        made = httpx2.post(f"{site.keyed_url}/v1/videos", json=body, headers=bearer(key), trust_env=False).json()
        expect(newest).to_have_id(f"tile-{made['id']}")
        expect(newest.get_by_role("progressbar")).to_be_visible()
    expect(newest.locator("img[src*='variant=thumbnail']")).to_be_visible()
    with gallery.expect_download() as download:
        newest.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"{made['id']}.mp4"
    assert get(site, key, made["id"], "/content").content == download.value.path().read_bytes()
    httpx2.delete(f"{site.keyed_url}/v1/videos/{made['id']}", headers=bearer(key), trust_env=False)
    expect(gallery.locator(f"#tile-{made['id']}")).to_have_count(0)


def test_a_narrow_screen(site: Site, open_page: Callable[..., Page], key: str) -> None:
    phone = open_page(viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark")
    give_session(phone, site, key)
    phone.goto(f"{site.keyed_url}/#/gallery")
    for i in (0, 1):
        tiles(phone).nth(i).get_by_role("checkbox").check()
    expect(phone.get_by_role("region", name="Selection")).to_be_in_viewport()
    assert_fits(phone)
    assert_accessible(phone)
    phone.get_by_role("button", name="Compare").click()
    expect(phone).to_have_url(re.compile("#/compare"))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def get(site: Site, key: str, video_id: str, rest: str = "") -> httpx2.Response:
    return httpx2.get(f"{site.keyed_url}/v1/videos/{video_id}{rest}", headers=bearer(key), trust_env=False)
