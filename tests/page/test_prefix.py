"""The page behind a proxy that publishes the server under a path."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from service.settings import Settings
from tests.api_calls import services_for
from tests.conftest import serve
from tests.page.browsing import Seen
from tests.page.site import wait_for_event_threads


def test_everything_is_loaded_from_under_the_prefix(settings: Settings, page: Page, seen: Seen) -> None:
    with services_for(settings.model_copy(update={"root_path": "/tools/ivmix"})) as services, serve(services) as url:
        page.goto(f"{url}/tools/ivmix")
        expect(page.locator(".connection")).to_have_text("Live")
        page.get_by_role("link", name="Queue").click()
        expect(page.get_by_label("Model demo")).to_be_visible()
        assert all(request.url.startswith(f"{url}/tools/ivmix") for request in seen.requests)
        page.close()
        wait_for_event_threads()
