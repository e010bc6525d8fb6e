"""Compare: from the form to videos that play in sync, restored from the link."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.page.browsing import Seen, assert_accessible, assert_fits, give_session
from tests.page.site import PROMPT, Site

FRAMES = 8
# Where the square of tests/drawing_engine.py is in the picture that each <video> shows: columns from its left side.
SQUARES = """() => [...document.querySelectorAll("video")].map(video => {
  const canvas = Object.assign(document.createElement("canvas"), {width: video.videoWidth, height: video.videoHeight})
  const pen = canvas.getContext("2d")
  pen.drawImage(video, 0, 0)
  const row = pen.getImageData(0, canvas.height / 2, canvas.width, 1).data
  for (let x = 0; x < canvas.width; x++) if (Math.abs(row[4 * x] - 25) > 20) return x
})"""
TIMES = "[...document.querySelectorAll('video')].map(video => video.currentTime)"


def squares(page: Page, frame: int) -> bool:
    """Whether all videos show this frame."""
    expected = (384 - 96) * frame / (FRAMES - 1)
    return all(abs(found - expected) <= 3 for found in page.evaluate(SQUARES))


def test_samplers_of_one_seed_are_created_and_play_in_sync(site: Site, page: Page, seen: Seen) -> None:
    page.goto(f"{site.url}/#/compare")
    page.get_by_role("button", name=PROMPT).click()
    page.get_by_label("Seed").fill("11")
    page.get_by_label("ink", exact=True).check()
    page.get_by_label("Scale of ink").fill("0.5")
    expect(page.get_by_text("16 network calls").first).to_be_visible()
    page.get_by_role("button", name="Take out sampler 1").click()
    page.get_by_role("button", name="Add a sampler").click()
    page.get_by_label("Combination").last.select_option("RI-VV")
    assert_accessible(page)
    page.get_by_role("button", name="Create 3 videos").click()
    expect(page).to_have_url(re.compile(r"#/compare\?ids=(video_\w+,?){3}$"))
    expect(page.locator("video")).to_have_count(3)
    made = [site.http.get(f"/v1/videos/{video_id}").json() for video_id in re.findall(r"video_\w+", page.url)]
    assert [(video["seed"], video["sampler"]["name"]) for video in made] == [
        (11, "ddim"),
        (11, "iv-mixed"),
        (11, "iv-mixed"),
    ]
    assert [video["loras"] for video in made] == 3 * [[{"name": "ink", "scale": 0.5, "networks": ["image"]}]]
    for panel, video in zip(page.locator(".panel").all(), made, strict=True):
        expect(panel).to_contain_text(f"Network calls{sum(video['network_calls'].values())}")
        expect(panel).to_contain_text("Time")
    play_and_seek(page)
    assert_accessible(page)
    assert seen.event_connections() == 1
    restore_and_change(page)


def play_and_seek(page: Page) -> None:
    frame = page.get_by_label("Frame", exact=True)
    for to in (5, 2):
        frame.fill(str(to))
        page.wait_for_function("n => document.querySelector('.scrubber').value == n", arg=str(to))
        expect_frame(page, to)
    page.get_by_role("button", name="One frame forward").click()
    expect_frame(page, 3)
    page.get_by_role("button", name="Play").click()
    for _ in range(5):  # over several ends, after which it begins again
        page.wait_for_timeout(300)
        times = page.evaluate(TIMES)
        assert max(times) - min(times) < 0.5 / FRAMES, times
    page.get_by_role("button", name="Pause").click()
    stopped = int(frame.input_value())
    expect_frame(page, stopped)


def expect_frame(page: Page, frame: int) -> None:
    expect(page.get_by_label("Frame", exact=True)).to_have_attribute("aria-valuetext", f"Frame {frame + 1} of {FRAMES}")
    for _ in range(100):
        if squares(page, frame):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"frame {frame} is not shown by all: {page.evaluate(SQUARES)}")


def restore_and_change(page: Page) -> None:
    page.reload()
    expect(page.locator("video")).to_have_count(3)
    expect(page.get_by_role("region", name="Different settings")).to_contain_text("RI-VV")
    page.get_by_role("button", name="Take out Video network alone").click()
    expect(page.locator("video")).to_have_count(2)
    page.get_by_role("button", name="Add a video").click()
    page.locator(".pick[aria-pressed=false]").first.click()
    page.get_by_role("button", name="Compare 3").click()
    expect(page.locator("video")).to_have_count(3)
    page.set_viewport_size({"width": 360, "height": 740})
    assert_fits(page)
    page.go_back()
    expect(page.locator("video")).to_have_count(2)


def test_a_refusal_is_shown_and_leaves_no_video_behind(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 4(04|29)")
    give_session(page, site, site.new_key("one a minute", requests_per_minute=1))
    with site.held():
        site.create()  # the worker is busy, so that nothing of this comparison ends by itself
        page.goto(f"{site.keyed_url}/#/compare")
        page.get_by_role("button", name=PROMPT).click()
        page.get_by_role("button", name="Create 3 videos").click()
        refusal = re.compile(r"Rate limit exceeded: 1 new videos per minute.*Possible again in \d+ s")
        expect(page.get_by_role("alert")).to_contain_text(refusal)
        videos = page.request.get(f"{site.keyed_url}/v1/videos").json()["data"]
    assert [video["error"]["code"] for video in videos] == ["cancelled"]
    page.goto(f"{site.keyed_url}/#/compare?ids={videos[0]['id']},video_of_another")
    expect(page.locator(".panel").nth(0)).to_contain_text("The video was cancelled.")
    expect(page.locator(".panel").nth(1)).to_contain_text("There is no video with the id 'video_of_another'")
