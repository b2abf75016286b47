"""`python -m benchmarks.access`: decisions, logins beside predictions, revocations.

Ends by itself, in about six minutes; with `--quick` in half a minute, to see that it runs.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import argparse
import datetime as dt
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.access import logins, revocations
from benchmarks.access.report import rows, table
from benchmarks.suite import MODEL, SHIPPED, SuiteUnderLoad
from sealward.cli.user import add_user

_HERE = Path(__file__).parent
_FLOODING = 6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.access", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=6.0, help="measured time of each point")
    parser.add_argument("--revocations", type=int, default=1000, help="how many")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="a folder on the disk to measure"
    )
    parser.add_argument("--results", type=Path, default=_HERE.parent / "results", help="folder")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.revocations = 1, 1.0, 5
    with tempfile.TemporaryDirectory(prefix="sealward-bench-", dir=options.scratch) as scratch:
        results = run(Path(scratch), options.rounds, options.seconds, options.revocations)
    text = table(results)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"access-{results['when'].replace(':', '').replace('-', '')}"
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    print(f"raw results: {stem.with_suffix('.json')}", file=sys.stderr)
    return int(any(not row.met for row in rows(results)))


def run(scratch: Path, rounds: int, seconds: float, count: int) -> dict[str, Any]:
    """Measure everything; return the results."""
    before = os.getloadavg()[0]
    results: dict[str, Any] = {
        "when": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": measure.machine(scratch),
        "rounds": rounds,
        "seconds": seconds,
    }
    _say("session and decision")
    part = [sys.executable, "-m", "benchmarks.access.local", str(rounds), str(min(1.0, seconds))]
    done = subprocess.run(part, check=True, stdout=subprocess.PIPE)
    results["local"] = json.loads(done.stdout)
    body = scratch / "request.bin"
    body.write_bytes(_request())
    under_load = SuiteUnderLoad(scratch / "suite")
    under_load.begin()
    try:
        suite = under_load.suite
        password = secrets.token_urlsafe(18)
        users = [f"flood-{number}" for number in range(_FLOODING)]
        for user in users:
            add_user(suite, user, ["clinician"], password)
        under_load.login()
        _say("predictions, and predictions beside logins")
        results["logins"] = logins.run(under_load, body, users, password, rounds, seconds)
        _say(f"{count} revocations")
        results["revocations"] = revocations.run(suite, users[0], password, count)
    finally:
        under_load.end()
    results["load_average"] = [before, os.getloadavg()[0]]
    return results


def _request() -> bytes:
    import csv

    from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest

    with (SHIPPED / "heldout.csv").open(newline="") as file:
        row = [float(cell) for cell in list(csv.reader(file))[1][1:-1]]
    made = ModelInferRequest(model_name=MODEL)
    tensor = made.inputs.add(name="measurements", datatype="FP32", shape=[1, len(row)])
    tensor.contents.fp32_contents.extend(row)
    return made.SerializeToString()


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
