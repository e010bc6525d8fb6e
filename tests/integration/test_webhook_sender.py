"""One POST to a possibly hostile receiver, over real sockets."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.webhooks.sender import MAX_REPLY_BYTES, Outcome, Sender
from service.webhooks.url_policy import NameNotResolved, UrlPolicy
from tests.webhook_receivers import Receiver, Respond, raw, status

BODY = b'{"id":"evt_1"}'
OK = b"HTTP/1.1 200 OK\r\n"


def sender(*, timeout_s: float = 20, resolve: object = None, tls: ssl.SSLContext | None = None) -> Sender:
    url_policy = UrlPolicy(("127.0.0.0/8",), allow_http=True, resolver=resolve)  # type: ignore[arg-type]
    return Sender(url_policy, timeout_s=timeout_s, ssl_context=tls)


def send(answer: Respond, *, timeout_s: float = 20) -> tuple[Outcome, Receiver]:
    with Receiver(answer) as receiver:
        return sender(timeout_s=timeout_s).post(f"{receiver.url}/hook", BODY, {"webhook-id": "whd_1"}), receiver


def test_a_receiver_gets_the_bytes_and_headers_it_was_sent() -> None:
    with Receiver() as receiver:
        outcome = sender().post(f"{receiver.url}/hook?token=a%20b", BODY, {"webhook-id": "whd_1"})
    assert (outcome.status_code, outcome.error, outcome.is_delivered) == (204, None, True)
    (got,) = receiver.received
    assert (got.path, got.body) == ("/hook?token=a%20b", BODY)
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == "whd_1"
    assert got.headers["user-agent"].startswith("ivmix")


@pytest.mark.parametrize("code", [400, 404, 410, 500, 503])
def test_other_statuses_are_not_delivered(code: int) -> None:
    outcome, _ = send(status(code))
    assert (outcome.status_code, outcome.error, outcome.is_delivered) == (code, "bad_status", False)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(code: int) -> None:
    with Receiver() as inner:
        outcome, _ = send(status(code, location=f"{inner.url}/secret"))
        assert (outcome.status_code, outcome.error) == (code, "redirect")
        assert inner.received == []


@pytest.mark.parametrize(("said", "seconds"), [("120", 120), ("0", 0), ("soon", None), ("-5", None), ("9" * 30, None)])
def test_retry_after_in_seconds_is_read(said: str, seconds: float | None) -> None:
    outcome, _ = send(status(503, retry_after=said))
    assert outcome.retry_after_s == seconds


def test_retry_after_as_a_date_is_read() -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=600)
    outcome, _ = send(status(503, retry_after=at.strftime("%a, %d %b %Y %H:%M:%S GMT")))
    assert outcome.retry_after_s == pytest.approx(600, abs=60)


DRIPS = {
    "silent": raw(b"", pause_s=30),
    "head": raw(*[bytes([byte]) for byte in OK + b"x-a: " + b"b" * 200], pause_s=0.1),
    "informational": raw(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 300, pause_s=0.1),
    "body": raw(OK + b"content-length: 300\r\n\r\n", *[b"x"] * 300, pause_s=0.1),
    "chunks": raw(OK + b"transfer-encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 300, pause_s=0.1),
}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS.keys())
def test_a_slow_reply_is_aborted_at_the_deadline(drip: Respond) -> None:
    """Every byte would restart an ordinary read timeout."""
    outcome, receiver = send(drip, timeout_s=3.0)
    assert len(receiver.received) == 1
    assert not outcome.is_delivered
    assert (outcome.status_code, outcome.error) == (None, "timeout")
    assert outcome.duration_s < 18, "every drip lasts longer"


HUGE = {
    "body": raw(OK + b"content-length: 9999999999\r\n\r\n", *[b"x" * 65536] * 1000),
    "endless": raw(OK + b"\r\n", *[b"x" * 65536] * 1000),
    "chunks": raw(OK + b"transfer-encoding: chunked\r\n\r\n", *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 1000),
}


@pytest.mark.parametrize("huge", HUGE.values(), ids=HUGE.keys())
def test_a_huge_reply_is_aborted(huge: Respond) -> None:
    outcome, _ = send(huge)
    assert not outcome.is_delivered
    assert (outcome.status_code, outcome.error) == (200, "reply_too_large")


def test_a_huge_head_is_aborted() -> None:
    outcome, _ = send(raw(OK, *[b"x-a: " + b"b" * 8000 + b"\r\n"] * 100))
    assert not outcome.is_delivered
    assert outcome.error in ("reply_too_large", "not_http")


def test_a_reply_of_ordinary_size_is_accepted() -> None:
    page = b"y" * (MAX_REPLY_BYTES // 2)
    outcome, _ = send(raw(OK + b"content-length: %d\r\n\r\n" % len(page), page))
    assert outcome.is_delivered


def test_what_is_not_http_is_named() -> None:
    assert send(raw(b"+OK redis\r\n\r\n"))[0].error == "not_http"


def test_a_receiver_that_hangs_up_is_named() -> None:
    assert send(raw())[0].error in ("connection_lost", "not_http")


def test_a_refused_connection_is_named() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        outcome = sender().post(f"http://127.0.0.1:{s.getsockname()[1]}/", BODY, {})
    assert (outcome.status_code, outcome.error) == (None, "no_connection")


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/", "http://169.254.169.254/latest/", "ftp://127.0.0.1/", "http://a@127.0.0.1/", "nonsense"]
)
def test_a_url_that_is_no_longer_allowed_is_refused_without_a_connection(url: str) -> None:
    outcome = sender().post(url, BODY, {})
    assert (outcome.status_code, outcome.error) == (None, "refused_url")


def test_a_name_is_resolved_once_and_the_checked_address_is_connected_to() -> None:
    """DNS rebinding: a second resolution would give another address."""
    asked: list[str] = []

    def rebind(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with Receiver() as receiver:
        outcome = sender(resolve=rebind).post(f"http://rebind.example:{receiver.port}/", BODY, {})
    assert outcome.is_delivered
    assert asked == ["rebind.example"]
    assert receiver.received[0].headers["host"] == f"rebind.example:{receiver.port}"


def test_a_name_that_turned_private_after_registration_is_refused() -> None:
    """DNS rebinding again: public when the URL was registered, private when a webhook is sent."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    url_policy = UrlPolicy(allow_http=True, resolver=lambda host, port: next(answers))
    with Receiver() as receiver:
        url = f"http://rebind.example:{receiver.port}/"
        url_policy.check(url, "url")
        outcome = Sender(url_policy).post(url, BODY, {})
        assert outcome.error == "refused_url"
        assert receiver.received == []


def test_one_bad_address_among_good_ones_is_enough_to_refuse() -> None:
    with Receiver() as receiver:
        url = f"http://mixed.example:{receiver.port}/"
        outcome = sender(resolve=lambda host, port: ["127.0.0.1", "169.254.169.254"]).post(url, BODY, {})
        assert outcome.error == "refused_url"
        assert receiver.received == []


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with Receiver() as receiver:
        url = f"http://two.example:{receiver.port}/"
        assert sender(resolve=lambda host, port: ["127.0.0.77", "127.0.0.1"]).post(url, BODY, {}).is_delivered


def test_a_resolver_without_an_answer_is_named() -> None:
    def unreachable(host: str, port: int) -> list[str]:
        raise NameNotResolved("just now")

    assert sender(resolve=unreachable).post("http://app.example.com/", BODY, {}).error == "name_not_resolved"


def test_a_bug_of_ours_counts_as_an_attempt() -> None:
    def broken(host: str, port: int) -> list[str]:
        raise ZeroDivisionError

    assert sender(resolve=broken).post("http://app.example.com/", BODY, {}).error == "internal_error"


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert sender().post(receiver.url, BODY, {}).is_delivered
        assert proxy.received == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for hooks.example, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("hooks.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "both.pem"
    file.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def tls_of_receiver(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_tls_is_checked_against_the_name_although_an_address_is_connected_to(certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    with Receiver(tls=tls_of_receiver(certificate)) as receiver:
        to = sender(resolve=lambda host, port: ["127.0.0.1"], tls=trusting)
        good = to.post(f"https://hooks.example:{receiver.port}/", BODY, {})
        other_name = to.post(f"https://other.example:{receiver.port}/", BODY, {})
        stranger = sender(resolve=lambda host, port: ["127.0.0.1"]).post(
            f"https://hooks.example:{receiver.port}/", BODY, {}
        )
    assert good.is_delivered
    assert [got.sni for got in receiver.received] == ["hooks.example"]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
    assert (other_name.error, stranger.error) == ("tls_failed", "tls_failed")


def test_an_internal_authority_is_trusted_by_the_usual_variable(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Receiver(tls=tls_of_receiver(certificate)) as receiver:
        to = sender(resolve=lambda host, port: ["127.0.0.1"])
        assert to.post(f"https://hooks.example:{receiver.port}/", BODY, {}).is_delivered


def test_a_handshake_that_never_ends_is_aborted_at_the_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        outcome = sender(timeout_s=1.0).post(f"https://127.0.0.1:{silent.getsockname()[1]}/", BODY, {})
    assert outcome.error == "timeout"
    assert time.monotonic() - began < 10
