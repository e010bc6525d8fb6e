"""Webhooks: an endpoint from its creation to its end, and what was delivered."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.page.browsing import Seen, assert_accessible, assert_fits, give_session
from tests.page.site import Site
from tests.webhook_receivers import Receiver, status


def test_an_endpoint_is_created_tested_rotated_and_deleted(site: Site, page: Page, seen: Seen) -> None:
    seen.expect_error("status of 400")
    give_session(page, site, site.new_key("hooks"))
    page.goto(f"{site.keyed_url}/#/webhooks")
    with Receiver(status(204)) as receiver:
        first = create(page, f"{receiver.url}/hook")
        page.get_by_role("button", name="Send a test event").click()
        expect(page.get_by_text("Receiver answered 204")).to_be_visible()
        receiver.received[0].event(first)  # raises unless this secret signed it
        second = rotate(page)
        assert first != second
        deliver_again(page)
        receiver.wait(2)[1].event(second)
    assert_accessible(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert_fits(page)
    assert first not in page.content()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No endpoints yet")).to_be_visible()


def create(page: Page, url: str) -> str:
    """Returns the secret."""
    page.get_by_role("button", name="New endpoint").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("orders")
    dialog.get_by_label("URL").fill("http://10.0.0.1/hook")
    dialog.get_by_role("button", name="Create").click()
    expect(dialog.get_by_text("not a public address")).to_be_visible()
    assert_accessible(page)
    dialog.get_by_label("URL").fill(url)
    dialog.get_by_role("button", name="Create").click()
    return secret_shown_once(page)


def rotate(page: Page) -> str:
    page.get_by_role("button", name="New secret").click()
    page.get_by_role("checkbox", name="Sign with the old secret too").uncheck()
    page.get_by_role("button", name="Make a new secret").click()
    return secret_shown_once(page)


def secret_shown_once(page: Page) -> str:
    secret = page.get_by_role("dialog", name="Signing secret of orders").get_by_label("Signing secret")
    value = secret.input_value()
    page.get_by_role("button", name="Done").click()
    expect(secret).to_have_count(0)
    return value


def deliver_again(page: Page) -> None:
    delivery = page.locator(".delivery").first
    delivery.locator("summary").click()
    expect(delivery).to_contain_text("status 204")
    delivery.get_by_role("button", name="Deliver again").click()
    expect(delivery.locator("summary")).to_contain_text("2 attempts")
