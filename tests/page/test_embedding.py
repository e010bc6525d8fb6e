"""docs/embedding.md: its page of another origin runs as printed, except for address and key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from service.scopes import Scope
from service.settings import Settings
from service.wiring import open_services
from tests.conftest import serve
from tests.doc_examples import ADDRESS, DOCS, example
from tests.page.browsing import Seen, assert_accessible
from tests.page.foreign_page import ForeignPage
from tests.page.site import PROMPT, Site, wait_for_event_threads
from tests.processes import finished_video


@dataclass(frozen=True)
class Server:
    """The API with keys, which lets pages of one other origin in."""

    url: str
    http: httpx2.Client  # with a key that may create videos
    key: str  # that may only read those videos
    page: ForeignPage

    def create(self) -> str:
        """The id of a new video."""
        return self.http.post("/v1/videos", json={"prompt": PROMPT, "num_inference_steps": 4}).json()["id"]


@pytest.fixture
def server(site: Site) -> Iterator[Server]:
    owner, key = site.services.keys.create("app")
    _, reader = site.services.keys.create("dashboard", scopes=[Scope.READ], owner=owner.id)
    with ForeignPage() as page:
        given = {"auth": "keys", "cors_origins": [page.origin], "presign_seconds": 3}
        services = open_services(Settings.model_validate(site.services.settings.model_dump() | given))
        headers = {"authorization": f"Bearer {key}"}
        with serve(services) as url, httpx2.Client(base_url=url, headers=headers, trust_env=False) as http:
            yield Server(url, http, reader, page)
        wait_for_event_threads()
        services.close()


@pytest.fixture
def wall(server: Server) -> ForeignPage:
    """The page of the document."""
    text = example(DOCS / "embedding.md", "html", "<!doctype html>")
    assert ADDRESS in text
    assert 10 <= len(text.splitlines()) <= 40
    server.page.show(text.replace(ADDRESS, server.url).replace("YOUR_API_KEY", server.key), may_load_from=server.url)
    return server.page


def player(page: Page, video_id: str) -> Locator:
    return page.locator(f'ivmix-player[video="{video_id}"]')


PLAY = """video => new Promise((done, failed) => {
  setTimeout(() => failed(new Error("it did not end")), 20000)
  video.onended = done
  video.muted = true
  video.play().catch(() => {}) // of a URL that has expired; the player takes a new one
})"""


def play(found: Locator) -> list[float]:
    """Width and end time of the video, after it has played to its end."""
    media = found.locator("video")
    expect(media).to_have_attribute("src", re.compile("signature="))
    media.evaluate(PLAY)
    return media.evaluate("video => [video.videoWidth, video.currentTime]")


# A request with every header that a page of another origin may send; what it can read of the response.
PART = """async ([url, key]) => {
  const headers = {authorization: `Bearer ${key}`, range: "bytes=0-9", "last-event-id": "1-1"}
  const response = await fetch(url, {headers})
  return [response.status, response.headers.get("content-range").split("/")[0], (await response.blob()).size]
}"""


def test_the_documented_page_lists_plays_and_follows(
    site: Site, server: Server, wall: ForeignPage, page: Page, seen: Seen
) -> None:
    done = finished_video(server.http, server.create())["id"]
    page.goto(wall.url)
    assert play(player(page, done)) == [384, 1]
    assert page.evaluate(PART, [f"{server.url}/v1/videos/{done}/content", server.key]) == [206, "bytes 0-9", 10]
    with site.held():
        made = [server.create() for _ in range(3)]
        running = player(page, made[0])
        expect(running).to_contain_text(re.compile("Sampling, step 1 of 4"))
        expect(running.get_by_role("progressbar")).to_be_visible()
        expect(player(page, made[2])).to_contain_text("Queued")
        assert_accessible(page)
    for video_id in made:
        assert play(player(page, video_id)) == [384, 1]
    # One connection of the page, and one that the players of unfinished videos shared.
    assert [request.url.removeprefix(server.url) for request in seen.requests if "events" in request.url] == [
        "/v1/events",
        "/v1/events",
    ]
    server.http.delete(f"/v1/videos/{done}")
    expect(player(page, done)).to_have_count(0)


def test_a_player_shows_the_sentence_of_the_server_and_needs_no_key_for_signed_urls(
    site: Site, server: Server, page: Page, seen: Seen
) -> None:
    seen.expect_error("status of 40[134]")
    video = site.finished(seed=5)
    own = server.create()
    signed = finished_video(server.http, own)
    src, poster = signed["download_url"], signed["thumbnail_url"]
    body = f"""<!doctype html><title>t</title><script type="module" src="{server.url}/embed.js"></script>
      <ivmix-player id="other" video="{video["id"]}" api-key="{server.key}"></ivmix-player>
      <ivmix-player id="revoked" video="{own}" api-key="wrong"></ivmix-player>
      <ivmix-player id="signed" src="{src}" poster="{poster}"></ivmix-player>
      <ivmix-player id="changed" src="{src}x"></ivmix-player>"""
    server.page.show(body, may_load_from=server.url)
    page.goto(server.page.url)
    expect(page.locator("#other")).to_contain_text("There is no video with the id")
    expect(page.locator("#revoked")).to_contain_text("This API key is unknown or revoked.")
    expect(page.locator("#changed")).to_contain_text("The signature of this URL does not match")
    assert play(page.locator("#signed")) == [384, 1]


def test_a_url_that_expires_is_renewed(server: Server, page: Page, seen: Seen) -> None:
    """Its URLs live for 3 to 4.5 seconds here."""
    seen.expect_error("status of 403")
    made = server.create()
    body = f"""<!doctype html><title>t</title><script type="module" src="{server.url}/embed.js"></script>
      <ivmix-player video="{made}" api-key="{server.key}"></ivmix-player>"""
    server.page.show(body, may_load_from=server.url)
    page.goto(server.page.url)
    media = player(page, made).locator("video")
    expect(media).to_have_attribute("src", re.compile("expires="))
    first = media.get_attribute("src")
    page.wait_for_timeout(5000)
    assert httpx2.get(first, trust_env=False).status_code == 403
    assert play(player(page, made)) == [384, 1]
    assert media.get_attribute("src") != first
