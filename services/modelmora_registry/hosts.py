"""Which hosts a source may be on: names that the settings allow, and addresses that are not this network's own.

An operator's import, a redirect and a name server decide whom the registry asks; none of them shall make it ask for
what only machines inside can see. So a host that the settings do not name must have a public address, and that is
looked at where the connection is made, not before: a name may have another address a moment later.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from modelmora.errors import FailedPrecondition

EVERY = "*"
"""Every host with a public address."""


class Hosts:
    """`allowed`: names, `*.example.org` for all below one, addresses, each with `:port` or for all ports; or EVERY.

    What is named may have any address.
    """

    def __init__(self, allowed: Iterable[str] = (EVERY,)) -> None:
        names = [_host_and_port(name) for name in allowed]
        self._every = (EVERY, None) in names
        self._named = frozenset(names) - {(EVERY, None)}

    def check(self, host: str, port: int) -> None:
        """Raises FailedPrecondition for a host that is neither named nor may be public."""
        if self._is_named(host, port):
            return
        if not self._every:
            raise FailedPrecondition(f"the registry may not ask {_shown(host, port)} (registry.source_hosts)")
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return  # A name: its addresses are looked at when it is connected to.
        self._check_public(host, port, address)

    def addresses(self, host: str, port: int) -> list[str]:
        """Where to connect to. Raises FailedPrecondition when any address of an unnamed host is not public, OSError
        when it has none."""
        self.check(host, port)
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        if not self._is_named(host, port):
            for address in addresses:
                self._check_public(host, port, ipaddress.ip_address(address))
        return addresses

    def _is_named(self, host: str, port: int) -> bool:
        name = host.lower().strip("[]").rstrip(".")
        parents = [f"*.{name.split('.', count)[-1]}" for count in range(1, name.count(".") + 1)]
        return not self._named.isdisjoint((each, ports) for each in (name, *parents) for ports in (port, None))

    def _check_public(self, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        if not is_public(address):
            raise FailedPrecondition(
                f"{host} has an address inside ({address}); "
                f"name {_shown(host, port)} in registry.source_hosts if it is meant"
            )


def _host_and_port(text: str) -> tuple[str, int | None]:
    """What an entry names; without a port all of them. An IPv6 address stands in brackets before a port."""
    name, _, port = text.lower().rpartition(":")
    if name and port.isdecimal() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return text.lower().strip("[]"), None


def _shown(host: str, port: int) -> str:
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def place_of(url: str) -> tuple[str, int]:
    """The host that a URL leads to and its port, said or not. Raises ValueError for what leads nowhere."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def entry_of(url: str) -> str:
    """The entry that names where a URL leads, and no other port there."""
    return _shown(*place_of(url))


_WRAPPING = [ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96")]
"""Networks whose last 32 bits are an address of IPv4: NAT64, and the compatible addresses of old."""


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is one of the Internet's, also where an IPv6 address only wraps one of IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in _WRAPPING):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


def guarded(client: Any, hosts: Hosts) -> Any:
    """An httpx2 client that asks no other hosts, redirects included. Where a proxy connects, names are its affair."""

    def check(request: Any) -> None:
        hosts.check(*place_of(str(request.url)))

    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks.get("request", ()), check]}
    # There is no public way to say how the client's own transport connects.
    pool = client._transport._pool
    pool._network_backend = _Connecting(pool._network_backend, hosts)
    return client


class _Connecting:
    """A network backend of httpcore2 that looks at an address before it connects to that very one."""

    def __init__(self, inner: Any, hosts: Hosts) -> None:
        self._inner = inner
        self._hosts = hosts

    def connect_tcp(self, host: str, port: int, **options: Any) -> Any:
        import httpcore2

        try:
            addresses = self._hosts.addresses(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        for address in addresses[:-1]:
            try:
                return self._inner.connect_tcp(address, port, **options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return self._inner.connect_tcp(addresses[-1], port, **options)

    def connect_unix_socket(self, path: str, **options: Any) -> Any:
        return self._inner.connect_unix_socket(path, **options)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)
