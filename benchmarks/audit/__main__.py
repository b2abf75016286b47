"""`python -m benchmarks.audit`: the log beside Tessera, through gRPC, and at a million events.

Ends by itself: about two minutes, and about four more with --events 1000000 (the default).
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import argparse
import datetime as dt
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from benchmarks import measure
from benchmarks.audit import load, million, rival
from benchmarks.audit.report import table
from benchmarks.audit.services import Services
from sealward.tlog.checkpoint import open_checkpoint
from sealward.tlog.note import parse_vkeys

_HERE = Path(__file__).parent
_ENGINE_WRITERS = (1, 16, 256)
_IN_FLIGHT = (1, 16, 256)
_CONNECTIONS = (2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time of each point")
    parser.add_argument(
        "--events", type=int, default=1_000_000, help="size of the large log; 0 = none"
    )
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure"
    )
    parser.add_argument("--results", type=Path, default=_HERE.parent / "results", help="folder")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="sealward-bench-", dir=options.scratch) as scratch:
        results = run(Path(scratch), options.rounds, options.seconds, options.events)
    text = table(results)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"audit-{results['when'].replace(':', '').replace('-', '')}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    print(f"raw results: {stem.with_suffix('.json')}", file=sys.stderr)


def run(scratch: Path, rounds: int, seconds: float, events: int) -> dict[str, Any]:
    """Measure everything; return the results."""
    before = os.getloadavg()[0]
    results: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": measure.machine(scratch),
        "load_average": before,
        "rounds": rounds,
        "seconds": seconds,
    }
    syncs: list[float] = []
    results["engine"] = _engine(scratch, rounds, seconds, syncs)
    folder = scratch / "services"
    folder.mkdir(mode=0o700)
    running = Services(folder)
    try:
        _say("keys and audit start")
        running.begin()
        results["append"] = _append(running, rounds, seconds)
        results["otlp"] = _otlp(running, seconds)
        if events:
            _say(f"a log of {events:,} events")
            results["million"] = million.run(running, events, max(1, events // 100))
    finally:
        running.end()
    results["fdatasync_us"] = {
        "p50": measure.percentile(syncs, 0.5),
        "p99": measure.percentile(syncs, 0.99),
        "count": len(syncs),
    }
    return results


def _engine(scratch: Path, rounds: int, seconds: float, syncs: list[float]) -> dict[str, Any]:
    binary = rival.tessera()
    engines: dict[str, Callable[[Path, int], Any]] = {
        "ours": lambda folder, writers: _ours(folder, writers, seconds),
        "tessera": lambda folder, writers: rival.run(
            binary, folder, writers, seconds, receipts=False
        ),
        "tessera_receipts": lambda folder, writers: rival.run(
            binary, folder, writers, seconds, receipts=True
        ),
    }
    raw: dict[str, dict[str, list[Any]]] = {}
    for turn in range(rounds):
        syncs += measure.fdatasync_micros(scratch)
        for writers in _ENGINE_WRITERS:
            # Who goes first changes from round to round.
            for name in sorted(engines, reverse=bool(turn % 2)):
                _say(f"round {turn + 1} of {rounds}: {name}, {writers} writers")
                folder = scratch / "engine"
                folder.mkdir(mode=0o700)
                try:
                    figures = engines[name](folder, writers)
                finally:
                    shutil.rmtree(folder)
                raw.setdefault(str(writers), {}).setdefault(name, []).append(figures)
    folded: dict[str, Any] = {}
    for writers_, by_name in raw.items():
        row: dict[str, Any] = {name: _medians(points) for name, points in by_name.items()}
        row["ratio"] = row["ours"]["per_second"] / row["tessera"]["per_second"]
        row["ratio_receipts"] = row["ours"]["per_second"] / row["tessera_receipts"]["per_second"]
        row["raw"] = by_name
        folded[writers_] = row
    return folded


def _ours(folder: Path, writers: int, seconds: float) -> Any:
    command = [sys.executable, "-m", "benchmarks.audit.engine", str(folder), str(writers)]
    return json.loads(
        subprocess.run([*command, str(seconds)], check=True, capture_output=True).stdout
    )


def _append(running: Services, rounds: int, seconds: float) -> dict[str, Any]:
    credentials = running.credentials("gateway")
    points: dict[str, list[Any]] = {}
    for turn in range(rounds):
        for in_flight in _IN_FLIGHT:
            _say(f"round {turn + 1} of {rounds}: Append, {in_flight} in flight")
            figures = load.append(credentials, running.address, in_flight, seconds)
            points.setdefault(str(in_flight), []).append(figures)
    return {key: {**_medians(values), "raw": values} for key, values in points.items()}


def _otlp(running: Services, seconds: float) -> dict[str, Any]:
    credentials = running.credentials("gateway")
    found: dict[str, Any] = {}
    for connections in _CONNECTIONS:
        _say(f"OTLP, {connections} connections")
        before = _settled_size(running)
        figures = load.export(credentials, running.address, connections, 2 * seconds)
        grown = _settled_size(running) - before
        found[str(connections)] = {**figures, "lost": figures["acknowledged"] - grown}
    return found


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


def _medians(points: list[Any]) -> dict[str, float]:
    return {key: measure.middle([point[key] for point in points]) for key in points[0]}


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
