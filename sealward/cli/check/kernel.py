"""What Linux says of processes: their files under /proc, their listening sockets."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from sealward.check.deployment import Listener
from sealward.check.row import NotTestable

_LISTEN = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def proc(pid: int, name: str) -> str:
    """Return a file of /proc/PID; raise NotTestable."""
    try:
        return Path("/proc", str(pid), name).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise NotTestable(f"/proc/PID/{name} cannot be read: {error.strerror}") from None


def listeners(processes: Mapping[str, int]) -> list[Listener]:
    """Return the listening TCP sockets of processes; raise NotTestable when Linux is silent."""
    owners: dict[str, str] = {}
    for name, pid in processes.items():
        for inode in _sockets(pid):
            owners.setdefault(inode, name)
    found = []
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for inode, host, port in _listening(family, Path("/proc/net", table)):
            if inode in owners:
                found.append(Listener(owners[inode], host, port))
    return found


def _sockets(pid: int) -> Iterator[str]:
    folder = Path("/proc", str(pid), "fd")
    try:
        links = list(folder.iterdir())
    except OSError:
        raise NotTestable(
            "whose sockets are open is told to root alone: the services cannot be looked into"
        ) from None
    for link in links:
        try:
            match = _SOCKET.fullmatch(str(link.readlink()))
        except OSError:
            continue
        if match:
            yield match[1]


def _listening(family: int, table: Path) -> Iterator[tuple[str, str, int]]:
    try:
        rows = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return
    for row in rows:
        cells = row.split()
        if cells[3] == _LISTEN:
            raw, _, port = cells[1].partition(":")
            words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
            packed = struct.pack(f"={len(words)}I", *words)
            host = ipaddress.ip_address(socket.inet_ntop(family, packed))
            yield cells[9], str(host), int(port, 16)
