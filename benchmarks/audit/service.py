"""The running service over mTLS: appends with receipts, exported spans that must all be there."""

from __future__ import annotations

from typing import Any

from benchmarks import measure
from benchmarks.audit import load
from benchmarks.audit.beside import Say
from benchmarks.audit.services import Services
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.leaf import EVENT_ID_SIZE
from sealward.tlog.note import parse_vkeys
from sealward.tlog.tiles import TILE_WIDTH, Tile, decode_bundle

IN_FLIGHT = (1, 16, 256)
CONNECTIONS = (2, 4)


def append(running: Services, rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    """Append with so many in flight; the CPU time is the audit process's, for each entry."""
    credentials = running.credentials("gateway")
    points: dict[int, list[dict[str, float]]] = {count: [] for count in IN_FLIGHT}
    for turn in range(rounds):
        for in_flight in IN_FLIGHT:
            say(f"round {turn + 1} of {rounds}: Append, {in_flight} in flight")
            before = measure.cpu_seconds(running.audit_pid)
            figures = load.append(credentials, running.address, in_flight, seconds)
            used = measure.cpu_seconds(running.audit_pid) - before
            points[in_flight].append({**figures, "cpu_us": used / figures["sent"] * 1e6})
    return {
        str(count): {
            **{key: measure.middle([point[key] for point in some]) for key in some[0]},
            "raw": some,
        }
        for count, some in points.items()
    }


def otlp(running: Services, rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    """Export spans over so many connections, and look for each one in the published log."""
    credentials = running.credentials("gateway")
    points: dict[int, list[dict[str, Any]]] = {count: [] for count in CONNECTIONS}
    for turn in range(rounds):
        for connections in CONNECTIONS:
            say(f"round {turn + 1} of {rounds}: OTLP, {connections} connections")
            begin = _settled_size(running)
            before = measure.cpu_seconds(running.audit_pid)
            figures, exported = load.export(credentials, running.address, connections, seconds)
            used = measure.cpu_seconds(running.audit_pid) - before
            there = _event_ids(running, begin, _settled_size(running))
            ids = [event_id for request in exported for event_id in request.event_ids()]
            points[connections].append(
                {
                    **figures,
                    "cpu_us": used / len(ids) * 1e6,
                    "lost": len(set(ids) - there.keys()),
                    "repeated": sum(there.get(event_id, 1) - 1 for event_id in ids),
                }
            )
    return {
        str(count): {
            "per_second": measure.middle([point["per_second"] for point in some]),
            "cpu_us": measure.middle([point["cpu_us"] for point in some]),
            **{
                key: sum(point[key] for point in some)
                for key in ("acknowledged", "asked_to_wait", "lost", "repeated")
            },
            "raw": some,
        }
        for count, some in points.items()
    }


def _settled_size(running: Services) -> int:
    """Return the size of the published log once it no longer grows."""
    vkeys = parse_vkeys(running.vkey_file.read_text())
    size = -1
    while True:
        measure.pause(0.5)
        now = open_checkpoint((running.log_folder / "checkpoint").read_bytes(), vkeys).size
        if now == size:
            return size
        size = now


def _event_ids(running: Services, start: int, end: int) -> dict[bytes, int]:
    """Return how often each event id stands in the entries [start, end) of the published log."""
    found: dict[bytes, int] = {}
    for index in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
        first = index * TILE_WIDTH
        bundle = Tile(None, index, min(TILE_WIDTH, end - first))
        entries = decode_bundle((running.log_folder / bundle.path).read_bytes(), bundle.width)
        for leaf in entries[max(0, start - first) :]:
            event_id = leaf[1 : 1 + EVENT_ID_SIZE]
            found[event_id] = found.get(event_id, 0) + 1
    return found
