"""Sentinels promote a replica when the primary is killed: processes go on by themselves, and nothing acknowledged is
lost. The servers are real."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.doctor.finding import Severity
from service.doctor.server import check_replicas
from service.errors import ConfigurationError, NotReplicated
from service.jobs.model import JobState
from service.jobs.record_reader import Idempotency
from service.jobs.rq_queues import generate_queue
from service.redis_connection.check import RedisAway, check_redis
from service.redis_connection.replication import Replication
from service.settings import Settings
from service.wiring import Services, open_services
from tests.conftest import serve
from tests.factories import make_job
from tests.polling import polled
from tests.ports import free_port
from tests.processes import PROMPT, started, wait_for, worker
from tests.sentinels import SENTINEL_PASSWORD, SentinelSet

POSTS_BEFORE, POSTS_AFTER = 9, 9
CLIENTS, PACE_S = 3, 0.2


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    with SentinelSet(tmp_path_factory.mktemp("sentinels")) as running:
        yield running


def settings_of(sentinels: SentinelSet, data: Path, **more: object) -> Settings:
    fields: dict[str, Any] = {
        "redis_url": sentinels.url,
        "redis_sentinel_password": SENTINEL_PASSWORD,
        "redis_wait_replicas": 1,
        "data_dir": data,
        "auth": "off",
        "models": "demo",
        **more,
    }
    return Settings.model_validate(fields)


@pytest.fixture
def services(sentinels: SentinelSet, tmp_path: Path) -> Iterator[Services]:
    sentinels.wait_until_complete()
    with closing(open_services(settings_of(sentinels, tmp_path, redis_wait_s=4))) as opened:
        opened.redis.flushdb()
        yield opened


def address(sentinels: SentinelSet, tmp_path: Path, **changes: object) -> str:
    found = settings_of(sentinels, tmp_path, **changes).redis_address
    assert found is not None
    return found


class TestCheck:
    def test_polls_ask_the_primary_that_the_sentinels_name(self, services: Services) -> None:
        job = services.store.create(make_job(), generate_queue(services.redis, "demo"))
        assert polled(services, job.id) == job

    def test_a_primary_behind_sentinels_passes(self, sentinels: SentinelSet, tmp_path: Path) -> None:
        check_redis(address(sentinels, tmp_path))

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("/videos/", "/movies/", "knows no primary 'movies', only videos"),
            (":secret@", ":wrong@", "the primary 'videos' of the Sentinels 127.0.0.1"),
            ("/0", "/99", "does not have the database"),
            ("/videos/0", "/", "is not of the form redis+sentinel://"),
            ("127.0.0.1:", "127.0.0.1:x", "as Sentinel number 1"),
        ],
    )
    def test_wrong_urls(self, old: str, new: str, words: str, sentinels: SentinelSet, tmp_path: Path) -> None:
        url = sentinels.url.replace(old, new, 1) if old != "/0" else sentinels.url[:-2] + new
        with pytest.raises(ConfigurationError, match=r"^IVMIX_REDIS_URL") as raised:
            check_redis(address(sentinels, tmp_path, redis_url=url))
        assert words in raised.value.message
        assert not {"secret", SENTINEL_PASSWORD} & set(raised.value.message.replace("@", " ").split())

    @pytest.mark.parametrize(
        ("password", "words"), [("wrong", "rejects user or password"), (None, "requires a password; set")]
    )
    def test_wrong_passwords_of_sentinels(
        self, password: str | None, words: str, sentinels: SentinelSet, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigurationError, match="IVMIX_REDIS_SENTINEL_PASSWORD") as raised:
            check_redis(address(sentinels, tmp_path, redis_sentinel_password=password))
        assert words in raised.value.message

    def test_a_server_in_the_place_of_a_sentinel(self, sentinels: SentinelSet, tmp_path: Path) -> None:
        url = f"redis+sentinel://:secret@127.0.0.1:{sentinels.servers[0].port}/videos"
        with pytest.raises(ConfigurationError, match="is a server and no Sentinel"):
            check_redis(
                address(sentinels, tmp_path, redis_url=f"{url}?sentinel_password=secret", redis_sentinel_password=None)
            )
        sentinel = f"redis://:{SENTINEL_PASSWORD}@127.0.0.1:{sentinels.sentinels[0].port}"
        with pytest.raises(ConfigurationError, match=r"is a Sentinel.*redis\+sentinel://"):
            check_redis(sentinel)

    def test_sentinels_that_do_not_answer_may_come(self, sentinels: SentinelSet, tmp_path: Path) -> None:
        gone = f"redis+sentinel://:secret@127.0.0.1:{free_port()}/videos"
        with pytest.raises(RedisAway, match="no Sentinel answers"):
            check_redis(address(sentinels, tmp_path, redis_url=gone))
        one_of_two = sentinels.url.replace("@", f"@127.0.0.1:{free_port()},", 1)
        check_redis(address(sentinels, tmp_path, redis_url=one_of_two))


class TestTooFewReplicas:
    """Two replicas are there, three are wanted."""

    @pytest.fixture
    def strict(self, sentinels: SentinelSet, tmp_path: Path, services: Services) -> Iterator[Services]:
        with closing(
            open_services(settings_of(sentinels, tmp_path, redis_wait_replicas=3, redis_wait_s=0.1))
        ) as opened:
            yield opened

    def test_a_video_is_refused_and_nothing_is_left(self, strict: Services) -> None:
        with serve(strict) as url:
            answer = httpx2.post(f"{url}/v1/videos", json={"prompt": PROMPT}, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "2"
        assert strict.redis.keys("ivm:job*") == []

    def test_a_replica_that_is_lost_meanwhile(
        self, services: Services, strict: Services, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was there when the request began. The job is taken back, so that it does not run unknown to its client."""
        monkeypatch.setattr(type(strict.store._replication), "require", lambda *_: None)
        queue = generate_queue(strict.redis, "demo")
        idempotency = Idempotency("key", "fingerprint")
        with pytest.raises(NotReplicated, match=r"^[0-2] of IVMIX_REDIS_WAIT_REPLICAS=3 "):
            strict.store.create(make_job(), queue, idempotency=idempotency)
        assert (queue.job_ids, strict.store.list()[0]) == ([], [])
        again = services.store.create(make_job(), generate_queue(services.redis, "demo"), idempotency=idempotency)
        assert [job.id for job in strict.store.list()[0]] == [again.id]

    def test_doctor_says_so(self, services: Services, strict: Services) -> None:
        def found(replication: Replication) -> list[Severity]:
            return [each.severity for each in check_replicas(services.redis, replication, uses_sentinels=True)]

        assert found(strict.replication) == [Severity.PROBLEM]
        assert found(services.replication) == [Severity.OK]
        assert found(Replication()) == [Severity.WARNING]

    def test_an_earlier_video_is_not_acknowledged_again(self, services: Services, strict: Services) -> None:
        idempotency = Idempotency("key", "fingerprint")
        job = services.store.create(make_job(), generate_queue(services.redis, "demo"), idempotency=idempotency)
        assert services.store.find_by_idempotency_key(job.owner, idempotency) == [job]
        with pytest.raises(NotReplicated):
            strict.store.find_by_idempotency_key(job.owner, idempotency)

    def test_a_cancellation_is_not_acknowledged(self, services: Services, strict: Services) -> None:
        job = services.store.create(make_job(), generate_queue(services.redis, "demo"))
        with pytest.raises(NotReplicated):
            strict.store.cancel(job.id)
        with pytest.raises(NotReplicated):  # it is cancelled, and a repeated request waits again
            strict.store.cancel(job.id)
        assert services.store.cancel(job.id).state is JobState.CANCELLED  # type: ignore[union-attr]

    def test_a_key_is_not_acknowledged(self, strict: Services) -> None:
        with pytest.raises(NotReplicated):
            strict.keys.create("dashboard")
        assert strict.keys.list() == []


class Clients:
    """A context of threads that post videos, each with an idempotency key that is repeated until it is accepted."""

    def __init__(self, url: str) -> None:
        self.accepted: list[str] = []  # ids in answers with 200
        self.refused: list[int] = []  # other statuses
        self._url, self._stop = url, threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _post(self, number: int) -> None:
        with httpx2.Client(base_url=self._url, timeout=30, trust_env=False) as http:
            for count in itertools.count():
                deadline = time.monotonic() + 90
                while not self._is_accepted(http, f"{number}-{count}") and time.monotonic() < deadline:
                    time.sleep(0.05)
                if self._stop.wait(PACE_S):
                    return

    def _is_accepted(self, http: httpx2.Client, key: str) -> bool:
        answer = http.post("/v1/videos", json={"prompt": PROMPT}, headers={"idempotency-key": key})
        if answer.status_code != 200:
            self.refused.append(answer.status_code)
            return False
        self.accepted.append(answer.json()["id"])
        return True

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self.accepted) >= count or None, timeout_s=90, hint="for accepted videos")


def fail_over(sentinels: SentinelSet, fault: str, clients: Clients) -> None:
    """Lose the primary while videos are accepted, and get it back as a replica."""
    sentinels.wait_until_complete()
    before = len(clients.accepted)
    if fault == "kill":
        lost = sentinels.kill_primary()
    else:
        lost = sentinels.primary
        lost.freeze()
    sentinels.wait_for_promotion(lost)
    if fault == "kill":
        lost.start()
    else:
        lost.thaw()  # it believes to be the primary, until a Sentinel makes it a replica
    clients.wait_for(before + POSTS_AFTER)


def losing_primaries(sentinels: SentinelSet, folder: Path, *faults: str) -> None:
    """Post videos to a real API with a real worker while primaries are lost; check that none is lost or made twice."""
    settings = settings_of(sentinels, folder, max_waiting=10_000, requests_per_minute=100_000)
    environment = {
        **sentinels.environment,
        "IVMIX_DATA_DIR": str(folder),
        "IVMIX_MODELS": "demo",
        "IVMIX_LEASE_S": "6",
        "IVMIX_BEAT_S": "1",
        "IVMIX_LOOK_S": "0.5",
        "FAKE_STEP_S": "0.001",
    }
    with (
        closing(open_services(settings)) as services,
        worker(environment, "tests.fake_worker"),
        started(environment, "service.maintenance"),
        serve(services) as url,
    ):
        services.redis.flushdb()
        promotions = sentinels.promotions
        with Clients(url) as clients:
            clients.wait_for(POSTS_BEFORE)
            for fault in faults:
                fail_over(sentinels, fault, clients)
        assert len(clients.accepted) == len(set(clients.accepted))
        assert set(clients.refused) <= {503}

        def completed() -> set[str]:
            return {job.id for job in services.store.list(limit=1000)[0] if job.state is JobState.COMPLETED}

        made = f"{sentinels.promotions - promotions} promotions for {len(faults)} faults (see DOWN_AFTER_MS if more)"
        hint = f"for every video, after {made}"
        wait_for(lambda: completed() >= set(clients.accepted) or None, timeout_s=300, hint=hint)
        assert {job.id for job in services.store.list(limit=1000)[0]} == set(clients.accepted)


@pytest.mark.timeout(240)
def test_a_killed_primary_loses_nothing_acknowledged(sentinels: SentinelSet, tmp_path: Path) -> None:
    losing_primaries(sentinels, tmp_path, "kill")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_primaries_killed_and_frozen_again_and_again(sentinels: SentinelSet, tmp_path: Path) -> None:
    losing_primaries(sentinels, tmp_path, *["kill", "freeze"] * 3)
