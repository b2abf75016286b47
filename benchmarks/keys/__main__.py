"""`python -m benchmarks.keys`: sealing beside the bare cipher, keys by RPC, mTLS, a large file.

Ends by itself, in about two minutes; a file of 10 GiB (`--large-gib 10`) takes one more and 11 GiB
of disk.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import argparse
import datetime as dt
import json
import logging
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from benchmarks import measure
from benchmarks.audit.services import Services
from benchmarks.keys import rpc, transport
from benchmarks.keys.report import rows, table
from benchmarks.keys.vault import Vault, vault
from sealward.kit.spool import Spool

_HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keys", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=0.5, help="measured time of each point")
    parser.add_argument("--large-gib", type=float, default=1.0, help="size of the large file")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure"
    )
    parser.add_argument("--results", type=Path, default=_HERE.parent / "results", help="folder")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="sealward-bench-", dir=options.scratch) as scratch:
        large = int(options.large_gib * 2**30)
        results = run(Path(scratch), options.rounds, options.seconds, large)
    text = table(results)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"keys-{results['when'].replace(':', '').replace('-', '')}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    print(f"raw results: {stem.with_suffix('.json')}", file=sys.stderr)
    return int(any(row.met is False for row in rows(results)))


def run(scratch: Path, rounds: int, seconds: float, large: int) -> dict[str, Any]:
    """Measure everything; return the results."""
    before = os.getloadavg()[0]
    results: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {**measure.machine(scratch), "cryptography": version("cryptography")},
        "rounds": rounds,
        "seconds": seconds,
    }
    _say("sealing beside the bare cipher")
    results["local"] = _module("benchmarks.keys.local", str(rounds), str(seconds))
    for name in ("vault", "services"):
        (scratch / name).mkdir(mode=0o700)
    with vault(scratch / "vault") as beside:
        results["provider"] = "vault" if beside else "embedded"
        running = Services(scratch / "services", beside.settings() if beside else None)
        try:
            _say(f"the keys service, provider {results['provider']}")
            running.start("keys")
            results |= _keys(running, beside, rounds, seconds)
            _say("mutual TLS")
            results["transport"] = transport.run(running, rounds, seconds)
        finally:
            running.end()
    results["fdatasync_us"] = measure.percentile(measure.fdatasync_micros(scratch), 0.5)
    _say(f"a file of {large / 2**30:g} GiB")
    results["large"] = _module("benchmarks.keys.large", str(scratch), str(large))
    results["load_average"] = [before, os.getloadavg()[0]]
    return results


def _keys(running: Services, beside: Vault | None, rounds: int, seconds: float) -> dict[str, Any]:
    works = rpc.calls(running)
    if beside:
        works["hvac"] = beside.data_key(rpc.CONTEXT)
    spool = Spool(running.folder / "spool.sqlite")
    works["record"] = lambda: spool.append(lambda _number: bytes(400))
    calls = rpc.latencies(works, rounds, seconds)
    lease = rpc.Lease(running)
    try:
        leased: dict[str, float] = {}
        reached = beside.counted(lambda: leased.update(lease.use())) if beside else None
        return {"calls": calls, "leased": {**(leased or lease.use()), "vault": reached}}
    finally:
        lease.close()


def _module(*arguments: str) -> Any:
    """Run a part in a process of its own."""
    done = subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
