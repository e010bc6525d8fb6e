"""Which network addresses a webhook may be sent to. Pure: resolves nothing and connects to nothing.

Sources: the IANA special-purpose address registries (IPv4 and IPv6), and the clouds' metadata addresses.
Python's `is_global` alone is not enough: in 3.11 it calls 64:ff9b:1::/48, 2002::/16 and 5f00::/16 global.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# No allow-list opens these: they are link-local, mean "any address", or serve a cloud's credentials.
ALWAYS_REFUSED = networks(
    "0.0.0.0/8",  # "this host": connects to loopback
    "169.254.0.0/16",  # link-local: metadata of AWS, Google, Azure, OpenStack, ...
    "224.0.0.0/4",  # multicast
    "255.255.255.255/32",  # broadcast
    "100.100.100.200/32",  # metadata: Alibaba
    "168.63.129.16/32",  # Azure's host
    "192.0.0.192/32",  # metadata: Oracle
    "::/128",
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local
    "ff00::/8",  # multicast
    "fd00:ec2::/32",  # metadata: AWS
    "fd20:ce::/32",  # metadata: Google
)

NOT_PUBLIC_V4 = networks(
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
)

PUBLIC_V6 = ip_network("2000::/3")  # the only part of IPv6 that is allocated
NOT_PUBLIC_V6 = networks(
    "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
    "2001:db8::/32",
    "2002::/16",  # 6to4, whatever IPv4 address it embeds
    "2620:4f:8000::/48",
    "3fff::/20",
)

NAT64 = ip_network("64:ff9b::/96")  # how networks without IPv4 reach IPv4 addresses
NAT64_LOCAL = ip_network("64:ff9b:1::/48")
IPV4_COMPATIBLE = ip_network("::/96")
IPV4_TRANSLATED = ip_network("::ffff:0:0:0/96")
ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # the upper 32 of the 64 interface bits


def refusal_reason(text: str, allowed: Sequence[Network] = (), *, is_allowed_host: bool = False) -> str | None:
    """Why nothing is sent to this address; None if it is allowed.

    Args:
        text: the address, as the resolver returns it.
        allowed: networks that are allowed although they are not public.
        is_allowed_host: the operator allows the host that has this address, by name.
    """
    try:
        address = unwrapped(ip_address(text))
    except ValueError:
        return "not an address"
    if any(candidate in network for candidate in (address, *embedded_ipv4(address)) for network in ALWAYS_REFUSED):
        return "a link-local, metadata or multicast address"
    if is_allowed_host or any(address in network for network in allowed) or is_public(address):
        return None
    return "not a public address"


def is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in NOT_PUBLIC_V4)
    return address in PUBLIC_V6 and address.is_global and not any(address in network for network in NOT_PUBLIC_V6)


def unwrapped(address: Address) -> Address:
    """The address that packets go to: an IPv4-mapped or NAT64 address is the IPv4 address in it."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return _low_32_bits(address)
    return address.ipv4_mapped or address


def embedded_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """IPv4 addresses that a transition mechanism embeds: 6to4, Teredo, ISATAP, local NAT64, compatible, translated."""
    if isinstance(address, IPv4Address) or address.is_loopback:  # ::1 does not embed 0.0.0.1
        return ()
    found = [address.sixtofour, *(address.teredo or ())]
    is_isatap = int(address) >> 32 & 0xFFFF_FFFF in ISATAP
    if is_isatap or any(address in network for network in (NAT64_LOCAL, IPV4_COMPATIBLE, IPV4_TRANSLATED)):
        found.append(_low_32_bits(address))
    return tuple(inner for inner in found if inner is not None)


def _low_32_bits(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)
