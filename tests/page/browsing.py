"""What a browser did while a test used it, and accessibility checks of what it shows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request

from tests.page.site import Site

LOOPBACK = {"127.0.0.1", "localhost"}


@dataclass
class Seen:
    """Requests, console errors and uncaught exceptions of all pages of one test."""

    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _expected: list[str] = field(default_factory=list)

    def watch(self, context: BrowserContext) -> None:
        context.on("request", self._on_request)
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self.errors.append(f"uncaught: {error.error}"))

    def expect_error(self, pattern: str) -> None:
        """Console errors that match the regular expression are part of the test."""
        self._expected.append(pattern)

    def event_connections(self) -> int:
        """How many connections for events were opened so far."""
        return sum(request.resource_type == "eventsource" for request in self.requests)

    def foreign(self) -> list[str]:
        """Requests to anything but loopback."""
        urls = [urlsplit(request.url) for request in self.requests]
        return [url.geturl() for url in urls if url.scheme not in ("data", "blob") and url.hostname not in LOOPBACK]

    def problems(self) -> list[str]:
        unexpected = [e for e in self.errors if not any(re.search(pattern, e) for pattern in self._expected)]
        return unexpected + [f"left this machine: {url}" for url in self.foreign()]

    def _on_request(self, request: Request) -> None:
        self.requests.append(request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")


def assert_is_drawn(page: Page, image: Locator) -> None:
    """An `<img>` that has loaded its picture."""
    page.wait_for_function("image => image.complete && image.naturalWidth > 1", arg=image.element_handle())


def assert_accessible(page: Page) -> None:
    """axe-core has no serious or critical finding, in the light and in the dark colours."""
    before = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # colours without transitions
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [
            f"{finding['id']}: {finding['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
            for finding in found
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]
        assert not serious, f"{page.url} in {scheme} colours:\n" + "\n".join(serious)
    page.emulate_media(color_scheme=before, reduced_motion="no-preference")


def give_session(page: Page, site: Site, key: str) -> None:
    """The context of the page gets the cookie that the sign-in screen gets."""
    answer = page.request.post(f"{site.keyed_url}/v1/session", headers={"authorization": f"Bearer {key}"})
    assert answer.ok, answer.text()


def assert_fits(page: Page) -> None:
    """Nothing is wider than the window: no scrolling sideways."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{page.url} is {wide} pixels too wide"
