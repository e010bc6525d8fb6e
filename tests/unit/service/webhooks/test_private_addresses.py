from __future__ import annotations

import pytest

from service.webhooks.private_addresses import networks, refusal_reason

EVERYTHING = networks("0.0.0.0/0", "::/0")

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1",
          "2606:4700:4700::1111", "2a00:1450:4001:800::200e", "::ffff:8.8.8.8", "64:ff9b::808:808"]  # fmt: skip

# One of every special range, and every way to embed an IPv4 address in an IPv6 one.
NOT_PUBLIC = [
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "127.0.0.1", "127.255.255.254",
    "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "240.0.0.1", "::1", "fc00::1", "fd12:3456::1", "2001:db8::1", "3fff::1", "5f00::1",
    "100::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2002:808:808::1",
    "64:ff9b:1::808:808", "::8.8.8.8",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::",
    "2002:a00:1::", "4000::1",
]  # fmt: skip

ALWAYS_REFUSED = [
    "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.0.1", "239.255.255.255", "255.255.255.255",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "::", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1",
    "fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
    "64:ff9b:1::a9fe:a9fe", "::169.254.169.254", "::ffff:0:169.254.169.254", "2001:0:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:5601:5601", "2a00:1450::5efe:a9fe:a9fe", "2a00:1450::200:5efe:a9fe:a9fe",
    "::ffff:0.0.0.0", "::ffff:168.63.129.16",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal_reason(address) is None


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_special_addresses_are_allowed_only_by_the_operator(address: str) -> None:
    assert refusal_reason(address) == "not a public address"
    assert refusal_reason(address, EVERYTHING) is None
    assert refusal_reason(address, is_allowed_host=True) is None


@pytest.mark.parametrize("address", ALWAYS_REFUSED)
def test_nothing_opens_link_local_metadata_and_multicast(address: str) -> None:
    for reason in (
        refusal_reason(address),
        refusal_reason(address, EVERYTHING),
        refusal_reason(address, is_allowed_host=True),
    ):
        assert reason == "a link-local, metadata or multicast address"


@pytest.mark.parametrize("text", ["", "example.com", "1.2.3", "1.2.3.4.5", "0177.0.0.1", "::1::", "12345::"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    assert refusal_reason(text, EVERYTHING, is_allowed_host=True) == "not an address"


def test_an_allowed_network_opens_itself_only() -> None:
    allowed = networks("10.1.0.0/16", "fd12::/16")
    assert refusal_reason("10.1.2.3", allowed) is None
    assert refusal_reason("::ffff:10.1.2.3", allowed) is None
    assert refusal_reason("fd12::5", allowed) is None
    assert refusal_reason("10.2.0.1", allowed) is not None
    assert refusal_reason("fd13::5", allowed) is not None
