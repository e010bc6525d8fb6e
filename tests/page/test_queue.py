"""The queue: what runs and waits, live, and cancelling."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from service.wiring import Services
from tests.page.browsing import Seen, assert_accessible, assert_fits, assert_is_drawn
from tests.page.site import Site


def test_the_queue_follows_the_videos_and_cancels_many(site: Site, page: Page, seen: Seen) -> None:
    page.goto(f"{site.url}/#/queue")
    expect(page.get_by_label("Model demo")).to_contain_text("1 worker")
    with site.held():
        running = site.create(num_inference_steps=20)
        expect(page.get_by_label("Running")).to_contain_text("step 1 of 20")
        assert_is_drawn(page, page.get_by_label("Running").locator("img"))
        waiting = [site.create(seed=seed)["id"] for seed in range(3)]
        rows = page.get_by_label("Waiting").get_by_role("listitem")
        expect(rows).to_have_count(3)
        expect(rows.locator(".place")).to_have_text(["1", "2", "3"])
        expect(page.get_by_role("link", name="Queue")).to_contain_text("4")
        page.set_viewport_size({"width": 360, "height": 740})
        assert_fits(page)
        assert_accessible(page)
        page.set_viewport_size({"width": 1280, "height": 800})
        for row in (0, 2):
            rows.nth(row).get_by_role("checkbox").check()
        page.get_by_role("button", name="Cancel chosen (2)").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        expect(rows).to_have_count(1)
        expect(rows.locator(".place")).to_have_text(["1"])
        page.get_by_label("Running").get_by_role("button", name="Cancel").click()
        expect(page.get_by_label("Running")).to_contain_text("4", timeout=30_000)  # the next one runs
    expect(page.get_by_text("Nothing is waiting")).to_be_visible()
    status = {video["id"]: video["status"] for video in site.http.get("/v1/videos?limit=4").json()["data"]}
    assert [status[video] for video in (running["id"], *waiting)] == ["failed", "failed", "completed", "failed"]
    assert seen.event_connections() == 1


def test_without_an_event_connection_the_page_polls(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("v1/events")
    page.route("**/v1/events", lambda route: route.abort())
    page.goto(f"{site.url}/#/queue")
    expect(page.locator(".connection")).to_have_text("Connecting")
    with site.held():
        video = site.create(num_inference_steps=20)
        expect(page.get_by_label("Running")).to_contain_text("step 1 of 20")
        page.get_by_role("link", name=video["prompt"]).first.click()
        expect(page.get_by_text("step 1 of 20")).to_be_visible()
    expect(page.locator("video")).to_be_visible()


def test_a_model_that_cannot_be_loaded_is_shown_with_its_reason(server: str, services: Services, page: Page) -> None:
    reason = "vae/diffusion.safetensors: the file is cut off"
    services.loads.report("demo", "worker-1", reason)
    page.goto(f"{server}/#/queue")
    expect(page.get_by_label("Model demo").get_by_role("alert")).to_contain_text(reason)
    page.get_by_role("link", name="Create", exact=True).click()
    expect(page.get_by_text("No model can be used at the moment")).to_be_visible()
