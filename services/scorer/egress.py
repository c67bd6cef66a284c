"""The guard for addresses that an operator's webhook may reach.

It resolves a name when a connection is made and hands exactly the addresses that it has checked to
the connector. There is no second look-up that could answer otherwise; the Host header and the name
in the TLS handshake stay the URL's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

TRANSLATED = IPv6Network("64:ff9b::/96")
"""IPv6 addresses that a gateway turns into the IPv4 address in their last 32 bits."""
Lookup = Callable[[str, int], Awaitable[list[str]]]


class ForbiddenAddress(OSError):
    """The name leads into a network that is not public."""


def is_public(address: str) -> bool:
    """Return whether an address is one of the open internet's, for one receiver."""
    parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed.teredo is not None:
            inner = parsed.teredo[1]
        if inner is None and parsed in TRANSLATED:
            inner = IPv4Address(int(parsed) & 0xFFFF_FFFF)
        parsed = inner or parsed
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


async def look_up(host: str, port: int) -> list[str]:
    """Ask the system for the addresses of a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedResolver(AbstractResolver):
    """Resolves names to public addresses, or to any where that is allowed."""

    def __init__(self, *, allow_private: bool, look_up: Lookup = look_up) -> None:
        """Take the system's look-up, or another's."""
        self._allow_private = allow_private
        self._look_up = look_up

    def check(self, host: str, address: str) -> None:
        """Raise ForbiddenAddress unless the address may be reached."""
        if not self._allow_private and not is_public(address):
            raise ForbiddenAddress(f"{host} leads to an address that is not public")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name; a single forbidden one forbids the name."""
        addresses = await self._look_up(host, port)
        for address in addresses:
            self.check(host, address)
        return [_result(host, port, address) for address in addresses]

    async def close(self) -> None:
        """Hold nothing."""


def _result(host: str, port: int, address: str) -> ResolveResult:
    family: Any = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )
