"""Steps that several tests of the page take."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.page.site import Site

JOB = re.compile(r"#/videos/video_\w+$")


def sign_in(page: Page, site: Site, key: str) -> None:
    """Opens the server that wants keys, and waits until the navigation is there."""
    page.goto(site.keyed_url)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("navigation", name="Screens")).to_be_visible()
