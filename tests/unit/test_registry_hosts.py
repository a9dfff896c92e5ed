"""Which hosts a source may be on."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from modelmora.errors import FailedPrecondition
from modelmora_registry.hosts import Hosts, entry_of, is_public

INSIDE = [
    *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("::1", "::", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::"),
    *("64:ff9b::7f00:1", "224.0.0.1", "ff02::1", "255.255.255.255", "0.0.0.1"),
    *("::7f00:1", "::10.0.0.1", "fec0::1"),
]


@pytest.mark.parametrize("text", INSIDE)
def test_an_address_inside_is_not_public_and_is_refused(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))
    with pytest.raises(FailedPrecondition, match="source_hosts"):
        Hosts().check(text, 443)
    with pytest.raises(FailedPrecondition, match="source_hosts"):
        Hosts().check(f"[{text}]", 443)
    Hosts(["*", text]).check(text, 443)


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_of_the_internet_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))
    Hosts().check(text, 443)


@pytest.mark.parametrize(
    ("allowed", "host", "answer"),
    [
        (["*"], "files.example.org", True),
        ([], "files.example.org", False),
        (["files.example.org"], "files.example.org", True),
        (["Files.Example.org"], "FILES.example.ORG.", True),
        (["files.example.org"], "files.example.org.evil.net", False),
        (["files.example.org"], "evilfiles.example.org", False),
        (["*.example.org"], "a.b.example.org", True),
        (["*.example.org"], "example.org", False),
        (["*.example.org"], "evilexample.org", False),
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
        (["10.0.0.1"], "8.8.8.8", False),
        (["::1"], "[::1]", True),
    ],
)
def test_only_named_hosts_are_asked(allowed: list[str], host: str, answer: bool) -> None:
    if answer:
        Hosts(allowed).check(host, 443)
        return
    with pytest.raises(FailedPrecondition, match="source_hosts"):
        Hosts(allowed).check(host, 443)


@pytest.mark.parametrize(
    ("allowed", "host", "port", "answer"),
    [
        (["127.0.0.1:8080"], "127.0.0.1", 8080, True),
        (["*", "127.0.0.1:8080"], "127.0.0.1", 5432, False),
        (["Files.Example.org:8443"], "files.example.org.", 8443, True),
        (["files.example.org:8443"], "files.example.org", 443, False),
        (["*.example.org:443"], "a.example.org", 443, True),
        (["*.example.org:443"], "a.example.org", 80, False),
        (["[::1]:8080"], "[::1]", 8080, True),
        (["*", "[::1]:8080"], "::1", 80, False),
        (["::1"], "::1", 80, True),
        (["fe80::1:80"], "fe80::1", 80, False),
        ([entry_of("http://127.0.0.1:8080/hub")], "127.0.0.1", 8080, True),
        ([entry_of("http://127.0.0.1:8080/hub")], "127.0.0.1", 80, False),
        ([entry_of("http://hub")], "hub", 80, True),
        ([entry_of("https://hub")], "hub", 443, True),
        ([entry_of("https://[fd00::1]:9000")], "fd00::1", 9000, True),
    ],
)
def test_a_port_that_is_named_is_the_only_one(allowed: list[str], host: str, port: int, answer: bool) -> None:
    if answer:
        Hosts(allowed).check(host, port)
        return
    with pytest.raises(FailedPrecondition, match="source_hosts"):
        Hosts(allowed).check(host, port)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
def test_a_name_that_leads_inside_is_refused_where_it_is_connected_to(host: str) -> None:
    with pytest.raises(FailedPrecondition, match="address inside"):
        Hosts().addresses(host, 80)
    assert Hosts(["*", host]).addresses(host, 80)


def test_one_address_inside_among_many_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers with both counts on one of them being tried."""

    def answer(host: str, port: int, **options: Any) -> list[tuple[Any, ...]]:
        found = [("8.8.8.8", port), ("169.254.169.254", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(FailedPrecondition, match=r"169\.254\.169\.254"):
        Hosts().addresses("both.example.org", 80)
    with pytest.raises(FailedPrecondition, match=r"169\.254\.169\.254"):
        Hosts(["*", "both.example.org:443"]).addresses("both.example.org", 80)
    assert Hosts(["both.example.org"]).addresses("both.example.org", 80) == ["8.8.8.8", "169.254.169.254"]
