"""Sign-in with a key: what it shows, what the browser keeps, how it ends."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from service.api_keys import Scope
from tests.page.browsing import Seen, assert_accessible, assert_fits
from tests.page.site import Site
from tests.page.steps import sign_in


def test_a_key_signs_in_and_no_script_can_read_it(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 401")
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(site.keyed_url)
    page.get_by_label("API key").fill("not a key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This API key is unknown or revoked.")
    assert_accessible(page)
    assert_fits(page)
    key = site.new_key("ada")
    sign_in(page, site, key)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    kept = page.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
    assert kept == '["",{},{}]'
    page.set_viewport_size({"width": 1280, "height": 800})
    expect(page.locator(".who")).to_contain_text("ada")
    page.reload()
    expect(page.locator(".who")).to_contain_text("ada")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.context.cookies() == []
    assert seen.event_connections() == 2  # one per load of the page that was signed in


def test_a_revoked_key_leads_to_the_sign_in_by_itself(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 401")
    sign_in(page, site, site.new_key("short"))
    (key_id,) = (key.id for key, _ in site.services.keys.list() if key.name == "short")
    site.services.keys.revoke(key_id)
    # The server ends the event connection within seconds, and the page asks why.
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_key_that_only_reads_everything_sees_the_videos_of_all(site: Site, page: Page) -> None:
    video = site.finished(seed=5)  # of the server without keys, so of another owner
    sign_in(page, site, site.new_key("board", scopes=[Scope.READ_ALL]))
    page.goto(f"{site.keyed_url}/#/queue")
    expect(page.get_by_text("The videos of all API keys")).to_be_visible()
    expect(page.get_by_role("link", name=video["prompt"]).first).to_be_visible()
    expect(page.get_by_role("link", name="Create")).to_have_count(0)
    page.goto(f"{site.keyed_url}/#/videos/{video['id']}")
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
