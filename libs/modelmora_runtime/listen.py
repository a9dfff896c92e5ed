"""Where a server listens: loopback or not, free or not, and who holds a port that is not free."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from modelmora.errors import FailedPrecondition, InvalidArgument

_YOUNG_SOCKET_SECONDS = 60.0


class PortInUse(FailedPrecondition):
    """Another process listens on this port."""


class ListensBeyondLoopback(FailedPrecondition):
    """Without tokens the platform listens on loopback only."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def address(host: str, port: int) -> str:
    """`host:port` as gRPC reads it."""
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str, port: int) -> str:
    """Where this machine's own clients reach a server that listens on `host`."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104
    return address(anywhere.get(host, host), port)


def drop_dead_sockets(folder: Path) -> None:
    """Removes the sockets on which nobody listens: a process that is killed leaves its own behind.

    Young ones stay: between the two steps of making one it looks dead, and another part may be starting here.
    """
    for path in folder.glob("*.sock"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            if time.time() - path.lstat().st_mtime < _YOUNG_SOCKET_SECONDS:
                continue
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def check_free(host: str, port: int, setting: str) -> None:
    """Raises PortInUse naming the holder, or InvalidArgument when `host` is no address of this machine."""
    if port == 0:
        return
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InvalidArgument.at("platform.host", f"{host} cannot be resolved: {error.strerror}") from error
    for family, kind, protocol, _, where in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(where)
                # Binding beside a listener is allowed by SO_REUSEADDR in corners; listening is not.
                probe.listen(1)
            except PermissionError as error:
                raise InvalidArgument.at(setting, f"port {port} needs more rights: {error.strerror}") from error
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise in_use(host, port, setting) from error
                raise InvalidArgument.at("platform.host", f"{host} cannot be listened on: {error.strerror}") from error


def in_use(host: str, port: int, setting: str) -> PortInUse:
    """The error that names who holds the port, as far as we may see."""
    who = holder(port)
    return PortInUse(
        f"port {port} on {host} is in use by {who or 'a process that may not be looked at'}; "
        f"stop it or set {setting} (0 takes a free port)",
        port=port,
        holder=who or "",
    )


def holder(port: int) -> str | None:
    """`command line (pid 123)` of the process that listens on a TCP port; None when nobody does or it is not ours."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        if not inodes.isdisjoint(_open_files(process)):
            return f"{_command(process)} (pid {process.name})"
    return None


def _open_files(process: Path) -> Iterator[str]:
    try:
        descriptors = os.listdir(process / "fd")
    except OSError:  # gone, or another user's
        return
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed meanwhile, as the one of our own listing
            yield os.readlink(process / "fd" / descriptor)


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    text = " ".join(word.decode(errors="replace") for word in words)
    return (text[:157] + "…" if len(text) > 158 else text) or "a process"
