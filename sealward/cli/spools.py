"""What waits in the services' spools, as their metrics say."""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass

from sealward.cli.connect import Admin
from sealward.cli.suite import Suite

SPOOLED = ("inference", "keys")
"""The services that export their events from a spool."""

_SECONDS = 5.0
_LARGEST = 8 << 20
_SAMPLE = re.compile(rb"^(sealward_spool_(?:records|oldest_seconds)) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one spool: how many records, and when the oldest was made (nanoseconds)."""

    records: int
    oldest: int


def waiting(suite: Suite, admin: Admin) -> dict[str, Waiting | None]:
    """Ask each service that has a spool; None for one that does not say."""
    return {name: _waiting(suite, admin, name) for name in SPOOLED}


def _waiting(suite: Suite, admin: Admin, service: str) -> Waiting | None:
    address = suite.endpoints()[service].get("metrics", "")
    try:
        found = {
            name: float(value) for name, value in _SAMPLE.findall(_scrape(admin, service, address))
        }
        records = int(found[b"sealward_spool_records"])
        age = found[b"sealward_spool_oldest_seconds"]
    except (OSError, ssl.SSLError, KeyError, ValueError):
        return None
    return Waiting(records, time.time_ns() - int(age * 1e9) if records else 0)


def _scrape(admin: Admin, service: str, address: str) -> bytes:
    """Return what /metrics answers; raise OSError."""
    host, _, port = address.rpartition(":")
    context, name = admin.tls(service)
    with (
        socket.create_connection((host, int(port)), timeout=_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b""
        while len(answer) < _LARGEST and (part := secure.recv(65_536)):
            answer += part
        return answer
