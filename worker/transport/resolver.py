"""Addresses of one host, looked up once for everybody: a thousand calls that start together ask for the same name."""

import asyncio
import contextlib
import ipaddress
import socket

#: Names are looked up again after this: upstreams move, and spread their load, by changing them.
FRESH_SECONDS = 10.0
#: Trying more addresses than this helps nobody.
MAX_ADDRESSES = 4


class Resolver:
    """The system's resolver (hosts file, search domains and all), in a thread, with a short memory."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._known: list[str] = []
        self._preferred = ""
        self._looked_up_at = float("-inf")
        self._lookup: asyncio.Task[list[str]] | None = None
        with contextlib.suppress(ValueError):
            self._known = [str(ipaddress.ip_address(host))]
            self._looked_up_at = float("inf")  # an address needs no looking up

    async def addresses(self) -> list[str]:
        """At least one address, the preferred one first. Raises socket.gaierror."""
        if asyncio.get_running_loop().time() < self._looked_up_at + FRESH_SECONDS:
            return self._known
        if self._lookup is None:
            self._lookup = asyncio.create_task(self._look_up())
            self._lookup.add_done_callback(self._looked_up)
        # Shielded: who gives up waiting must not take the others' answer along.
        return await asyncio.shield(self._lookup)

    def prefer(self, address: str) -> None:
        """This one answered: it comes first, as long as it is among the host's addresses."""
        if address != self._preferred:
            self._preferred = address
            self._known = self._sorted(self._known)

    async def _look_up(self) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._known = self._sorted(list(dict.fromkeys(str(entry[4][0]) for entry in found)))[:MAX_ADDRESSES]
        self._looked_up_at = loop.time()
        return self._known

    def _sorted(self, addresses: list[str]) -> list[str]:
        return sorted(addresses, key=lambda address: address != self._preferred)

    def _looked_up(self, lookup: asyncio.Task[list[str]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # seen here, in case that nobody waits for it any more
