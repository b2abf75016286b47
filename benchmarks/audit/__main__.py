"""`python -m benchmarks.audit`: the log beside Tessera, through gRPC, and at a million events.

Ends by itself, after four to six minutes; half of it is the large log. Prints each target with the
figure and whether it was met; a target that is missed is no error.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import argparse
import datetime as dt
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import structlog

from benchmarks import measure
from benchmarks.audit import beside, million, service
from benchmarks.audit.report import page
from benchmarks.audit.services import Services
from benchmarks.audit.targets import judge

PARTS = ("engine", "append", "otlp", "million")
_HERE = Path(__file__).parent
_OTLP_ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time of each point")
    parser.add_argument("--events", type=int, default=1_000_000, help="size of the large log")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure"
    )
    parser.add_argument("--results", type=Path, default=_HERE.parent / "results", help="folder")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="sealward-bench-", dir=options.scratch) as scratch:
        results = run(Path(scratch), options.rounds, options.seconds, options.events, options.parts)
    text = page(results)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"audit-{results['when'].replace(':', '').replace('-', '')}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    print(f"raw results: {stem.with_suffix('.json')}", file=sys.stderr)


def run(
    scratch: Path, rounds: int, seconds: float, events: int, parts: Collection[str] = PARTS
) -> dict[str, Any]:
    """Measure the parts; return the results."""
    before = os.getloadavg()[0]
    results: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": measure.machine(scratch),
        "rounds": rounds,
        "seconds": seconds,
    }
    syncs = measure.fdatasync_micros(scratch)
    if "engine" in parts:
        results["engine"] = beside.run(scratch, rounds, seconds, _say)
        syncs += measure.fdatasync_micros(scratch)
    if "append" in parts or "otlp" in parts:
        results |= _with_services(
            scratch / "services", lambda running: _service(running, rounds, seconds, parts)
        )
        syncs += measure.fdatasync_micros(scratch)
    if "million" in parts and events:
        # A log of its own, so that it is of this size.
        results |= _with_services(
            scratch / "million",
            lambda running: {"million": million.run(running, events, max(1, events // 100), _say)},
        )
        syncs += measure.fdatasync_micros(scratch)
    results["fdatasync_us"] = {
        "p50": measure.percentile(syncs, 0.5),
        "p99": measure.percentile(syncs, 0.99),
        "count": len(syncs),
    }
    results["load_average"] = {"before": before, "after": os.getloadavg()[0]}
    results["targets"] = judge(results)
    return results


def _service(
    running: Services, rounds: int, seconds: float, parts: Collection[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "append" in parts:
        found["append"] = service.append(running, rounds, seconds, _say)
    if "otlp" in parts:
        found["otlp"] = service.otlp(running, min(rounds, _OTLP_ROUNDS), 2 * seconds, _say)
    return found


def _with_services(folder: Path, measured: Callable[[Services], dict[str, Any]]) -> dict[str, Any]:
    folder.mkdir(mode=0o700)
    running = Services(folder)
    try:
        _say("keys and audit start")
        running.begin()
        return measured(running)
    finally:
        running.end()


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
