"""Cancel, remix and start timeout over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from service.jobs.keys import job_key
from service.jobs.model import JobState
from service.jobs.rq_queues import generate_queue
from service.settings import Settings
from service.wiring import Services
from tests.api_calls import create

OTHER = "a green square moving up on a pink background"


class TestCancel:
    def test_a_waiting_video_never_reaches_a_worker(self, client: TestClient, services: Services) -> None:
        made = create(client)
        answer = client.post(f"/v1/videos/{made['id']}/cancel")
        assert answer.status_code == 200
        shown = answer.json()
        assert (shown["status"], shown["error"]["code"]) == ("failed", "cancelled")
        assert shown["cancelled_at"] is not None
        assert generate_queue(services.redis, "demo").job_ids == []
        assert services.store.start(made["id"], "e1") is None

    def test_a_running_video_is_asked_to_stop(self, client: TestClient, services: Services) -> None:
        made = create(client)
        services.store.start(made["id"], "e1")
        assert client.post(f"/v1/videos/{made['id']}/cancel").json()["status"] == "in_progress"
        assert services.store.report_progress(made["id"], "e1", 1, 20, "sampling") == "cancel"
        services.store.finish_cancel(made["id"], "e1")
        assert client.get(f"/v1/videos/{made['id']}").json()["error"]["code"] == "cancelled"

    def test_cancelling_again_or_too_late_changes_nothing(
        self, client: TestClient, finished: Callable[[str, bytes], None]
    ) -> None:
        cancelled, done = create(client)["id"], create(client)["id"]
        finished(done, b"mp4")
        for video_id in (cancelled, done):
            first = client.post(f"/v1/videos/{video_id}/cancel").json()
            again = client.post(f"/v1/videos/{video_id}/cancel")
            assert (again.status_code, again.json()) == (200, first)
        assert client.get(f"/v1/videos/{done}").json()["status"] == "completed"

    def test_an_unknown_video_is_404(self, client: TestClient) -> None:
        assert client.post("/v1/videos/video_x/cancel").json()["error"]["code"] == "video_not_found"


class TestRemix:
    SETTINGS = (
        "seed",
        "size",
        "fps",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
        "sampler",
    )

    def remix(self, client: TestClient, source: dict[str, Any], **body: Any) -> dict[str, Any]:
        answer = client.post(f"/v1/videos/{source['id']}/remix", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @pytest.mark.parametrize("name", ["iv-mixed", "ddim", "official"])
    def test_the_prompt_is_new_and_the_settings_are_the_same(self, client: TestClient, name: str) -> None:
        source = create(client, fps=4, num_inference_steps=9, guidance_scale=2, sampler={"name": name})
        made = self.remix(client, source, prompt=OTHER)
        assert (made["prompt"], made["remixed_from_video_id"]) == (OTHER, source["id"])
        assert made["id"] != source["id"]
        assert {key: made[key] for key in self.SETTINGS} == {key: source[key] for key in self.SETTINGS}

    def test_what_is_given_wins(self, client: TestClient) -> None:
        source = create(client, fps=4, sampler={"rho": 3, "interval": [0.2, 0.8]})
        made = self.remix(
            client, source, prompt=OTHER, seed=9, seconds="1", fps=8, sampler={"rho": 5}, metadata={"a": "b"}
        )
        assert (made["seed"], made["fps"], made["seconds"], made["metadata"]) == (9, 8, "1", {"a": "b"})
        assert (made["sampler"]["rho"], made["sampler"]["interval"]) == (5, [0.2, 0.8])

    def test_another_sampler_starts_from_the_models_defaults(self, client: TestClient) -> None:
        source = create(client, sampler={"rho": 3})
        made = self.remix(client, source, prompt=OTHER, sampler="ddim")
        assert (made["sampler"]["name"], made["sampler"]["rho"]) == ("ddim", 7)

    def test_settings_of_a_guidance_rule_are_kept_with_it(self, client: TestClient) -> None:
        source = create(client, sampler={"name": "ddim", "guidance_rule": "apg", "apg_eta": 0.5})
        assert self.remix(client, source, prompt=OTHER)["sampler"] == source["sampler"]
        made = self.remix(client, source, prompt=OTHER, sampler={"guidance_rule": "cfg-zero"})
        assert made["sampler"]["guidance_rule"] == "cfg-zero"
        assert "apg_eta" not in made["sampler"]

    def test_guidance_is_kept_unless_one_of_both_is_the_image_network_by_itself(self, client: TestClient) -> None:
        image, given = {"name": "ddim", "network": "image"}, {"sampler": {"name": "ddim"}}
        frames, clip = create(client, sampler=image), create(client, sampler="ddim")
        assert (frames["guidance_scale"], clip["guidance_scale"]) == (1.5, 2.25)
        assert self.remix(client, frames, prompt=OTHER)["guidance_scale"] == 1.5
        assert self.remix(client, frames, prompt=OTHER, **given)["sampler"]["network"] == "image"
        assert self.remix(client, frames, prompt=OTHER, sampler={"network": "video"})["guidance_scale"] == 2.25
        assert self.remix(client, frames, prompt=OTHER, sampler="iv-mixed")["guidance_scale"] == 2.25
        assert self.remix(client, clip, prompt=OTHER, sampler=image)["guidance_scale"] == 1.5
        assert self.remix(client, clip, prompt=OTHER, sampler=image, guidance_scale=3)["guidance_scale"] == 3
        other = create(client, guidance_scale=4)
        assert self.remix(client, other, prompt=OTHER, sampler="ddim")["guidance_scale"] == 4

    def test_negative_prompt_is_kept_unless_one_of_both_is_the_released_code(self, client: TestClient) -> None:
        clip, released = create(client), create(client, sampler="official", negative_prompt="low")
        assert self.remix(client, clip, prompt=OTHER, sampler="official")["negative_prompt"] == ""
        assert self.remix(client, released, prompt=OTHER, sampler={"zz": 2})["negative_prompt"] == "low"
        assert self.remix(client, released, prompt=OTHER, sampler="ddim")["negative_prompt"] == "low quality"

    def test_metadata_user_and_priority_are_not_inherited(self, client: TestClient) -> None:
        source = create(client, metadata={"a": "b"}, user="u", priority="low")
        made = self.remix(client, source, prompt=OTHER)
        assert (made["metadata"], made["user"], made["priority"]) == ({}, None, "normal")

    @pytest.mark.parametrize(
        ("body", "param"), [({}, "prompt"), ({"prompt": "a horse"}, "prompt"), ({"prompt": OTHER, "x": 1}, "x")]
    )
    def test_it_is_checked_like_any_other(self, client: TestClient, body: dict[str, Any], param: str) -> None:
        answer = client.post(f"/v1/videos/{create(client)['id']}/remix", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    def test_an_unknown_source_is_404(self, client: TestClient) -> None:
        answer = client.post("/v1/videos/video_x/remix", json={"prompt": OTHER})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")


class TestStartTimeout:
    def test_a_video_that_waits_too_long_fails_instead_of_starting(
        self, client: TestClient, services: Services, settings: Settings
    ) -> None:
        polled, taken, patient = (create(client, start_timeout_s=s)["id"] for s in (0.001, 0.001, 60))
        time.sleep(0.01)
        shown = client.get(f"/v1/videos/{polled}").json()
        assert (shown["status"], shown["error"]["code"]) == ("failed", "start_timeout")
        assert services.store.start(taken, "e1") is None
        job = services.store.get(taken)
        assert job is not None
        assert (job.state, job.error and job.error.code) == (JobState.FAILED, "start_timeout")
        assert services.store.start(patient, "e1") is not None

    def test_a_video_that_started_in_time_continues(self, client: TestClient, services: Services) -> None:
        made = create(client, start_timeout_s=60)["id"]
        assert services.store.start(made, "e1") is not None
        services.redis.hset(job_key(made), "start_by", "1.0")  # long ago
        assert client.get(f"/v1/videos/{made}").json()["status"] == "in_progress"


def test_a_server_that_forgets_its_scripts_at_any_moment_costs_no_request(
    client: TestClient, settings: Settings
) -> None:
    """As one that restarts again and again on a full disk."""
    stop = threading.Event()

    def forget() -> None:
        with Redis.from_url(settings.redis_url) as redis:
            while not stop.is_set():
                redis.script_flush()

    forgetting = threading.Thread(target=forget)
    forgetting.start()
    try:
        for _ in range(60):
            assert client.get(f"/v1/videos/{create(client)['id']}").status_code == 200
    finally:
        stop.set()
        forgetting.join()


def test_a_status_is_one_round_trip(client: TestClient, services: Services) -> None:
    made = create(client)["id"]
    client.get(f"/v1/videos/{made}")  # loads the script into the server
    services.store.start(create(client)["id"], "e1")

    def commands() -> int:
        return sum(entry["calls"] for name, entry in services.redis.info("commandstats").items() if counted(name))

    def counted(name: str) -> bool:  # commands inside a script are not round trips
        return name.removeprefix("cmdstat_") in ("evalsha", "eval", "script|load", "get", "multi", "exec")

    before, hashes = commands(), services.redis.info("commandstats")["cmdstat_hgetall"]["calls"]
    for _ in range(10):
        assert client.get(f"/v1/videos/{made}").json()["queue_position"] == 0
    assert commands() - before == 10
    assert services.redis.info("commandstats")["cmdstat_hgetall"]["calls"] - hashes == 10
