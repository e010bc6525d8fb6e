from __future__ import annotations

import threading
import time

import pytest

from service.errors import InvalidParameter
from service.webhooks.url_policy import (
    CHECK_TIMEOUT_S,
    MAX_CONCURRENT_CHECKS,
    NameNotResolved,
    UrlNotAllowed,
    UrlPolicy,
    system_resolver,
)

# How the system's resolver reads unusual spellings, as measured with glibc 2.36; the other names are invented.
ADDRESSES = {
    "2130706433": ["127.0.0.1"],
    "0x7f000001": ["127.0.0.1"],
    "0x7f.1": ["127.0.0.1"],
    "127.1": ["127.0.0.1"],
    "localhost": ["::1", "127.0.0.1"],
    "localhost.": ["127.0.0.1"],
    "app.example.com": ["93.184.216.34", "2606:4700:4700::1111"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "mixed.example": ["93.184.216.34", "10.0.0.5"],
    "mixed6.example": ["2606:4700:4700::1111", "fd12::1"],
    "hooks.svc.cluster.local": ["10.96.0.12"],
    "intranet": ["192.168.3.4"],
    "trap.svc.cluster.local": ["10.96.0.12", "169.254.169.254"],
    "empty.example": [],
}


def resolve(host: str, port: int) -> list[str]:
    if host in ADDRESSES:
        return ADDRESSES[host]
    if host.replace(".", "").isdigit() or ":" in host:
        return [host]
    raise UrlNotAllowed(f"there is no host {host}")


def url_policy(*allow: str, allow_http: bool = False) -> UrlPolicy:
    return UrlPolicy(allow, allow_http=allow_http, resolver=resolve)


HOSTILE = {
    "plain http": "http://app.example.com/hook",
    "ftp": "ftp://app.example.com/hook",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "no scheme": "//app.example.com/hook",
    "no host": "https:///hook",
    "not a url": "https://[::1",
    "loopback": "https://127.0.0.1/",
    "loopback, another": "https://127.8.9.10:8443/",
    "localhost": "https://localhost/",
    "localhost with a dot": "https://localhost./",
    "loopback as one number": "https://2130706433/",
    "loopback in hex": "https://0x7f000001/",
    "loopback in mixed hex": "https://0x7f.1/",
    "loopback, short": "https://127.1/",
    "loopback in octal": "https://0177.0.0.1/",
    "loopback v6": "https://[::1]/",
    "loopback, mapped": "https://[::ffff:127.0.0.1]/",
    "loopback, mapped in hex": "https://[::ffff:7f00:1]/",
    "loopback by nat64": "https://[64:ff9b::7f00:1]/",
    "loopback by 6to4": "https://[2002:7f00:1::]/",
    "loopback by a public name": "https://127.0.0.1.nip.example/",
    "any address": "https://0.0.0.0/",
    "any address v6": "https://[::]/",
    "private 10": "https://10.0.0.1/",
    "private 172": "https://172.16.5.4/",
    "private 192": "https://192.168.1.1/",
    "carrier nat": "https://100.64.0.1/",
    "unique local v6": "https://[fd00::1]/",
    "link-local": "https://169.254.169.254/latest/meta-data/",
    "link-local v6": "https://[fe80::1]/",
    "link-local v6 with a zone": "https://[fe80::1%25eth0]/",
    "metadata by name": "https://metadata.google.internal/computeMetadata/v1/",
    "metadata of alibaba": "https://100.100.100.200/",
    "multicast": "https://224.0.0.1/",
    "broadcast": "https://255.255.255.255/",
    "benchmark net": "https://198.18.0.1/",
    "documentation net": "https://203.0.113.9/",
    "one of two addresses is private": "https://mixed.example/",
    "one of two v6 addresses is private": "https://mixed6.example/",
    "user": "https://admin@app.example.com/",
    "user and password": "https://admin:secret@app.example.com/",
    "host hidden behind a user": "https://app.example.com@127.0.0.1/",
    "backslash": "https://app.example.com\\@127.0.0.1/",
    "fragment": "https://app.example.com/#@127.0.0.1/",
    "line break": "https://app.example.com/\r\nhost: evil",
    "tab": "https://app.exa\tmple.com/",
    "space": "https://app.example.com /",
    "unicode digits": "https://①②⑦.⓪.⓪.①/",
    "unicode dot": "https://127。0。0。1/",
    "percent in the host": "https://%31%32%37.0.0.1/",
    "mail server": "https://app.example.com:25/",
    "ssh": "https://app.example.com:22/",
    "port 0": "https://app.example.com:0/",
    "no such port": "https://app.example.com:99999/",
    "no such host": "https://nowhere.example/",
    "no address": "https://empty.example/",
    "too long": "https://app.example.com/" + "a" * 2048,
}


@pytest.mark.parametrize("url", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_url_is_refused_when_it_is_registered(url: str) -> None:
    with pytest.raises(InvalidParameter, match="'callback_url' cannot receive webhooks") as refused:
        url_policy().check(url, "callback_url")
    assert refused.value.param == "callback_url"


@pytest.mark.parametrize(
    "url",
    [
        "https://app.example.com/hook",
        "https://app.example.com:8443/hook?token=a%20b",
        "HTTPS://APP.EXAMPLE.COM/",
        "https://93.184.216.34/",
        "https://[2606:4700:4700::1111]/",
        "https://app.example.com/a@b?c=d@e",
    ],
)
def test_a_public_url_is_accepted(url: str) -> None:
    url_policy().check(url, "url")


def test_http_is_accepted_only_where_the_operator_allows_it() -> None:
    url_policy(allow_http=True).check("http://app.example.com/hook", "url")


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("192.168.0.0/16", "https://intranet/hook"),
        ("intranet", "https://intranet/hook"),
        ("Intranet", "https://INTRANET./hook"),
        (".svc.cluster.local", "https://hooks.svc.cluster.local/hook"),
        ("hooks.svc.cluster.local", "https://hooks.svc.cluster.local:81/hook"),
        ("127.0.0.0/8", "https://127.0.0.1:9000/"),
    ],
)
def test_the_operator_can_open_internal_urls(allow: str, url: str) -> None:
    ADDRESSES["intranet."] = ADDRESSES["INTRANET."] = ADDRESSES["intranet"]
    url_policy(allow).check(url, "url")
    with pytest.raises(InvalidParameter):
        url_policy("10.99.0.0/16", "other", ".example.org").check(url, "url")


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("169.254.0.0/16", "https://169.254.169.254/"),
        ("0.0.0.0/0", "https://169.254.169.254/"),
        ("metadata.google.internal", "https://metadata.google.internal/"),
        ("::/0", "https://[fe80::1]/"),
        ("::/0", "https://[::ffff:169.254.169.254]/"),
        (".svc.cluster.local", "https://trap.svc.cluster.local/"),
    ],
)
def test_no_allow_list_opens_link_local(allow: str, url: str) -> None:
    with pytest.raises(InvalidParameter, match="link-local"):
        url_policy(allow).check(url, "url")


def test_a_domain_opens_hosts_below_it_only() -> None:
    for url in ("https://evil-svc.cluster.local.example/", "https://intranet/"):
        with pytest.raises(InvalidParameter):
            url_policy(".svc.cluster.local").check(url, "url")


def test_the_refusal_does_not_reveal_what_an_internal_name_resolves_to() -> None:
    with pytest.raises(InvalidParameter) as refused:
        url_policy().check("https://intranet/", "url")
    assert "192.168" not in refused.value.message


def test_a_failing_resolver_does_not_reject_clients() -> None:
    def unreachable(host: str, port: int) -> list[str]:
        raise NameNotResolved("just now")

    policy = UrlPolicy(resolver=unreachable)
    policy.check("https://app.example.com/", "url")
    with pytest.raises(NameNotResolved):
        policy.resolve("app.example.com", 443, timeout_s=1)


def test_a_hanging_resolver_is_abandoned() -> None:
    hanging = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        hanging.wait(60)
        return ["127.0.0.1"]

    began = time.monotonic()
    with pytest.raises(NameNotResolved):
        UrlPolicy(resolver=hang).resolve("app.example.com", 443, timeout_s=0.05)
    assert time.monotonic() - began < CHECK_TIMEOUT_S
    hanging.set()


def test_slow_names_occupy_only_a_few_threads_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond those, a URL passes at once: its name is resolved before every request anyway."""
    # A slow machine must not free the slots early.
    monkeypatch.setattr("service.webhooks.url_policy.CHECK_TIMEOUT_S", 60.0)
    answer, asked = threading.Event(), threading.Semaphore(0)

    def slow(host: str, port: int) -> list[str]:
        asked.release()
        answer.wait(60)
        return ["127.0.0.1"]

    policy = UrlPolicy(resolver=slow)
    refused: list[InvalidParameter] = []

    def register() -> None:
        try:
            policy.check("https://slow.example/", "url")
        except InvalidParameter as e:
            refused.append(e)

    threads = [threading.Thread(target=register) for _ in range(MAX_CONCURRENT_CHECKS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert asked.acquire(timeout=60)
    policy.check("https://slow.example/", "url")
    assert not asked.acquire(blocking=False)  # it was not resolved
    with pytest.raises(InvalidParameter):
        policy.check("http://slow.example/", "url")  # refused without the resolver
    answer.set()
    for thread in threads:
        thread.join(60)
    assert len(refused) == MAX_CONCURRENT_CHECKS
    with pytest.raises(InvalidParameter):
        policy.check("https://slow.example/", "url")  # the slots are free again


def test_names_that_are_never_resolved_start_only_a_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver goes on long after the request has been answered."""
    answer, calls = threading.Event(), list[str]()
    monkeypatch.setattr("service.webhooks.url_policy.CHECK_TIMEOUT_S", 0.01)

    def silent(host: str, _port: int) -> list[str]:
        calls.append(host)
        answer.wait(60)
        return []

    policy = UrlPolicy(resolver=silent)
    for _ in range(3 * MAX_CONCURRENT_CHECKS):
        policy.check("https://slow.example/", "url")
    assert len(calls) == MAX_CONCURRENT_CHECKS
    answer.set()


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "127.1"])
def test_the_systems_resolver_knows_every_spelling_of_loopback(host: str) -> None:
    assert system_resolver(host, 443) == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["a..b", "a" * 300])
def test_the_systems_resolver_refuses_what_cannot_be_a_name(host: str) -> None:
    with pytest.raises(UrlNotAllowed):
        system_resolver(host, 443)
