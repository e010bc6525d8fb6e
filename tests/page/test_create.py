"""Create: from opening the page to a playing video, and what the form shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.browsing import Seen, assert_accessible, assert_fits
from tests.page.site import PROMPT, Site
from tests.page.steps import JOB, sign_in
from tests.reference_files import picture


def calls(page: Page, network: str) -> Locator:
    return page.locator(f"[data-calls={network}]")


def shown_calls(page: Page) -> dict[str, int]:
    return {network: int(calls(page, network).inner_text().split()[0]) for network in ("image", "video")}


def newest(site: Site) -> dict:
    return site.http.get("/v1/videos", params={"limit": 1}).json()["data"][0]


@pytest.mark.parametrize("with_keys", [False, True], ids=["open", "with keys"])
def test_two_clicks_lead_to_a_playing_video(site: Site, page: Page, seen: Seen, with_keys: bool) -> None:
    """Three with keys: the first one signs in."""
    if with_keys:
        sign_in(page, site, site.new_key("maker"))
    else:
        page.goto(site.url)
    page.get_by_role("button", name=PROMPT).click()
    page.get_by_role("button", name="Create video").click()
    page.wait_for_function("() => document.querySelector('video')?.currentTime > 0.1")
    expect(page.get_by_role("heading", name=PROMPT)).to_be_visible()
    assert newest(site)["prompt"] == PROMPT
    assert seen.event_connections() == 1
    assert seen.errors == []


def test_the_form_shows_the_calls_that_the_server_counts(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/#/create")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Steps", exact=True).fill("10")
    page.get_by_label("Combination").select_option("RI-VV")
    page.get_by_label("Seed").fill("123")
    begin = page.get_by_label("Interval: begin")
    expect(begin).to_have_attribute("max", "10")
    begin.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(begin).to_have_attribute("aria-valuetext", "step 2 of 10")
    expect(page.get_by_text("in steps 3 to 10 of 10")).to_be_visible()
    page.get_by_label("Image network in every n-th step").fill("2")
    page.get_by_label("Solver").select_option("dpmpp-2m")
    expect(page.get_by_label("Summary")).to_have_attribute("aria-busy", "false")
    shown = shown_calls(page)
    page.get_by_role("button", name="Create video").click()
    expect(page).to_have_url(JOB)
    video = newest(site)
    assert video["network_calls"] == shown
    assert (video["seed"], video["num_inference_steps"]) == (123, 10)
    assert (
        video["sampler"]
        | {
            "combination": "RI-VV",
            "order": "goback_first",
            "interval": [0.2, 1.0],
            "image_every": 2,
            "solver": "dpmpp-2m",
        }
        == video["sampler"]
    )


def test_each_error_is_shown_at_its_field_in_the_words_of_the_api(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 400")
    page.goto(f"{site.url}/#/create")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a dog moving left")
    expect(page.get_by_text("model 'demo' does not know 'dog'")).to_be_visible()
    expect(prompt).to_have_attribute("aria-invalid", "true")
    prompt.fill(PROMPT)
    expect(prompt).not_to_have_attribute("aria-invalid", "true")
    page.get_by_label("Steps", exact=True).fill("900")
    expect(page.get_by_text("num_inference_steps=900 is outside 1..200 for this model.")).to_be_visible()
    page.get_by_label("Steps", exact=True).fill("200")
    page.get_by_text("FreeInit").click()
    page.get_by_label("Iterations").fill("10")
    expect(page.get_by_text("This clip costs")).to_be_visible()


def test_a_full_limit_says_when_to_try_again(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 4(01|29)")
    sign_in(page, site, site.new_key("slow", requests_per_minute=1))
    for _ in range(2):
        page.goto(f"{site.keyed_url}/#/create")
        page.get_by_role("button", name=PROMPT).click()
        page.get_by_role("button", name="Create video").click()
        expect(page).to_have_url(JOB) if _ == 0 else None
    expect(page.get_by_role("alert")).to_contain_text("Possible again in")


def test_a_cache_is_marked_as_approximate_and_kept_by_an_edit(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 400")
    page.goto(f"{site.url}/#/create")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_text("More settings").click()
    page.get_by_label("Cache (approximate)").select_option("deep-cache")
    page.get_by_text("FreeInit").click()
    expect(page.get_by_text("sampler 'freeinit' calls each network once in a step")).to_be_visible()
    page.get_by_text("Z-Sampling").click()
    page.get_by_role("button", name="Create video").click()
    expect(page).to_have_url(JOB)
    expect(page.get_by_text("deep-cache, steps 1, levels 1")).to_be_visible()
    page.get_by_role("link", name="Edit").click()
    page.get_by_role("button", name="Create video").click()
    expect(page).to_have_url(JOB)
    assert newest(site)["approximations"] == ["deep-cache"]


def test_a_video_can_be_edited(site: Site, page: Page) -> None:
    source = site.finished(seed=77, sampler={"name": "ddim", "network": "image"}, metadata={"project": "edit"})
    page.goto(f"{site.url}/#/videos/{source['id']}")
    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_label("Seed")).to_have_value("77")
    expect(page.get_by_label("Network", exact=True)).to_have_value("image")
    page.get_by_label("Seed").fill("78")
    page.get_by_role("button", name="Create video").click()
    expect(page).to_have_url(JOB)
    made = newest(site)
    assert (made["seed"], made["sampler"], made["metadata"]) == (78, source["sampler"], source["metadata"])


def test_loras_are_chosen_with_their_scales(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 400")
    page.goto(f"{site.url}/#/create")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    scale = page.get_by_label("Scale of ink")
    expect(scale).to_be_disabled()
    page.get_by_label("zoom", exact=True).check()
    page.get_by_label("ink", exact=True).check()
    expect(page.get_by_text("Ink drawings. Prompt words: inked.")).to_be_visible()
    scale.fill("80")
    expect(page.get_by_text("80 is not possible, it must be at most 10")).to_be_visible()
    scale.fill("-0.5")
    page.get_by_label("zoom", exact=True).uncheck()
    page.get_by_role("button", name="Create video").click()
    expect(page).to_have_url(JOB)
    assert newest(site)["loras"] == [{"name": "ink", "scale": -0.5, "networks": ["image"]}]
    expect(page.get_by_text("-0.5, image network")).to_be_visible()
    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_label("ink", exact=True)).to_be_checked()
    expect(page.get_by_label("Scale of ink")).to_have_value("-0.5")
    expect(page.get_by_label("zoom", exact=True)).not_to_be_checked()


def test_a_video_can_start_from_a_picture(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/#/create")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Steps", exact=True).fill("10")
    chooser = page.get_by_label("Picture or clip to start from")
    chooser.set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": picture()})
    preview = page.get_by_alt_text("Preview of cat.png")
    expect(preview).to_have_js_property("naturalWidth", 64)
    page.get_by_label("Strength").fill("0.5")
    expect(page.get_by_label("Summary")).to_have_attribute("aria-busy", "false")
    shown = shown_calls(page)
    page.get_by_role("button", name="Create video").click()
    expect(page).to_have_url(JOB)
    made = newest(site)
    assert (made["total_steps"], made["network_calls"]) == (5, shown)
    expect(page.get_by_text("a picture, strength 0.5")).to_be_visible()
    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_text("The picture of the earlier video")).to_be_visible()
    expect(page.get_by_label("Strength")).to_have_value("0.5")
    page.get_by_label("Seed").fill("78")
    page.get_by_role("button", name="Create video").click()
    expect(page.get_by_text("another video")).to_be_visible()
    again = newest(site)
    assert (again["seed"], again["input_reference"]) == (78, made["input_reference"])


def test_a_file_that_cannot_be_used_is_refused_in_the_words_of_the_api(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 400")
    page.goto(f"{site.url}/#/create")
    page.get_by_role("button", name=PROMPT).click()
    chooser = page.get_by_label("Picture or clip to start from")
    chooser.set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": picture()[:60]})
    page.get_by_role("button", name="Create video").click()
    expect(page.get_by_text("The file in input_reference is a damaged PNG picture")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_label("Strength")).to_have_count(0)


def test_it_fits_and_is_accessible(site: Site, open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 360, "height": 740})
    page.goto(f"{site.url}/#/create")
    page.get_by_text("More settings").click()
    page.get_by_role("button", name="Add a pair").click()
    expect(calls(page, "image")).to_contain_text("calls")
    assert_fits(page)
    assert_accessible(page)


def test_several_videos_lead_to_the_gallery(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 400")
    page.goto(f"{site.url}/#/create")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Seed").fill("500")
    page.get_by_label("Videos", exact=True).fill("5")
    expect(page.get_by_text("IVMIX_MAX_VIDEOS_PER_REQUEST")).to_be_visible()
    page.get_by_label("Videos", exact=True).fill("2")
    with site.held():
        page.get_by_role("button", name="Create 2 videos").click()
        expect(page.get_by_role("heading", name="Gallery")).to_be_visible()
        made = site.http.get("/v1/videos", params={"limit": 2}).json()["data"]
        assert [video["seed"] for video in made] == [501, 500]
        for video in made:
            site.http.post(f"/v1/videos/{video['id']}/cancel")
