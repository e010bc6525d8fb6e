"""A running service and Debian's Chromium, driven by Playwright, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import browser as installed
from tests.page.browsing import Seen
from tests.page.site import Site, running_site

TIMEOUT_MS = 30_000  # of every wait: the machine may be busy
OPTIONS = [option for option in installed.OPTIONS if option != "--headless"]
# One process for all pages: starting another one costs as much as loading a page.
ONE_RENDERER = ("--renderer-process-limit=1", "--disable-site-isolation-trials")
# Not even the browser itself asks another machine.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Here and not in a fixture, because pytest reports these skips in one line."""
    if installed.CHROMIUM is None:
        pytest.skip(installed.MISSING)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Of the package, because asyncio.run() of other tests fails while Playwright's loop exists in this thread."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        options = [*OPTIONS, *ONE_RENDERER, OFFLINE]
        launched = playwright.chromium.launch(executable_path=installed.CHROMIUM, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Its worker draws squares at once, without a model; see tests/page/site.py."""
    with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def seen() -> Iterator[Seen]:
    """What the browser did. The test fails if there was a console error that it did not expect."""
    watched = Seen()
    yield watched
    assert watched.problems() == []


@pytest.fixture
def open_page(browser: Browser, seen: Seen) -> Iterator[Callable[..., Page]]:
    """open_page(viewport=..., color_scheme=...): a page of a new context, without cookies of others."""
    contexts = []

    def opened(**options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        seen.watch(context)
        return context.new_page()

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
