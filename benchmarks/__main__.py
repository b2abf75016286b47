"""`python -m benchmarks`: the suite beside bare ONNX Runtime and a naive server, in one run.

The servers take turns (A B A B) on one core, the generator has another; what is printed is the
median of the rounds. Ends by itself after about two minutes.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.generator import Generator, Target
from benchmarks.naive_server import session
from benchmarks.report import table
from benchmarks.suite import MODEL, SHIPPED, SuiteUnderLoad, naive, wait_for_naive
from sealward.cli.suite import free_ports
from sealward.client.tensors import encode_request

SERVER_CORE, GENERATOR_CORE = 0, 1
_HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="measured time of each point")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--results", type=Path, default=_HERE / "results", help="folder")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed: one for the servers, one for the generator")
    with tempfile.TemporaryDirectory(prefix="sealward-bench-") as scratch:
        results = run(Path(scratch), options.rounds, options.seconds, options.in_flight)
    text = table(results)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / results["when"].replace(":", "").replace("-", "")
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    print(f"raw results: {stem.with_suffix('.json')}", file=sys.stderr)


def run(scratch: Path, rounds: int, seconds: float, in_flight: list[int]) -> dict[str, Any]:
    """Measure everything; return the results."""
    generator = Generator(GENERATOR_CORE)
    rows = _rows()
    body = scratch / "request.bin"
    body.write_bytes(encode_request(MODEL, "", "", rows, None))
    before = os.getloadavg()[0]
    when = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    _say("bare ONNX Runtime")
    bare = _bare(body)
    _say("the suite: first start, restart")
    folder = scratch / "suite"
    suite = SuiteUnderLoad(folder)
    ready = suite.begin()
    try:
        first_answer = suite.restart({name: value.tolist() for name, value in rows.items()})
        _same_numbers(suite, rows)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        other = naive(SHIPPED / "model.onnx", int(address.rpartition(":")[2]), SERVER_CORE)
        try:
            naive_answer = wait_for_naive(address, body.read_bytes())
            roots = {"naive": other.pid, "sealward": suite.root_pid()}
            targets = {"naive": Target("naive", address), "sealward": suite.target()}
            measure.pin(roots["sealward"], SERVER_CORE)
            raw, syncs, idle = _load(
                generator, targets, roots, body, folder, rounds, seconds, in_flight
            )
            memory = {name: measure.memory(pid) for name, pid in roots.items()}
        finally:
            other.terminate()
            other.wait(10)
        described = measure.machine(folder)
    finally:
        suite.end()
    return {
        "when": when,
        "machine": described,
        "generator": generator.kind,
        "pinning": {"servers": SERVER_CORE, "generator": GENERATOR_CORE},
        "rounds": rounds,
        "seconds": seconds,
        "model": MODEL,
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "bare": bare,
        "load": _medians(raw),
        "fdatasync_us": {
            "p50": measure.percentile(syncs, 0.5),
            "p99": measure.percentile(syncs, 0.99),
            "count": len(syncs),
        },
        "idle_cpu": idle,
        "memory_mib": memory,
        "start_seconds": {
            "empty_folder_to_ready": ready,
            "up_to_first_answer": first_answer,
            "naive_to_first_answer": naive_answer,
        },
        "raw": raw,
    }


def _load(
    generator: Generator,
    targets: dict[str, Target],
    roots: dict[str, int],
    body: Path,
    folder: Path,
    rounds: int,
    seconds: float,
    in_flight: list[int],
) -> tuple[list[dict[str, Any]], list[float], float]:
    """Interleave the servers; return all points, the fdatasync times, the suite's idle share."""
    raw: list[dict[str, Any]] = []
    syncs: list[float] = []
    idle: list[float] = []
    for turn in range(rounds):
        syncs += measure.fdatasync_micros(folder)
        for count in in_flight:
            # Who goes first changes from round to round.
            for name in sorted(targets, reverse=bool(turn % 2)):
                _say(f"round {turn + 1} of {rounds}: {name}, {count} in flight")
                suite_before, began = measure.cpu_seconds(roots["sealward"]), time.perf_counter()
                point = generator.run(
                    targets[name],
                    body,
                    count,
                    warm=0.6,
                    seconds=seconds,
                    sample=lambda name=name: measure.cpu_seconds(roots[name]),  # type: ignore[misc]
                )
                if name == "naive":
                    used = measure.cpu_seconds(roots["sealward"]) - suite_before
                    idle.append(used / (time.perf_counter() - began))
                raw.append({"server": name, "round": turn + 1, **point})
    return raw, syncs, measure.middle(idle)


def _medians(raw: list[dict[str, Any]]) -> dict[str, Any]:
    """Fold the rounds: medians by server and number in flight, and their ratios."""
    folded: dict[str, Any] = {}
    for count in sorted({point["in_flight"] for point in raw}):
        pair: dict[str, Any] = {}
        for name in ("naive", "sealward"):
            points = [p for p in raw if p["server"] == name and p["in_flight"] == count]
            pair[name] = {
                key: measure.middle([p[key] for p in points])
                for key in ("per_second", "cpu_us", "generator_cpu")
            }
            pair[name]["latency_us"] = {
                key: measure.middle([p["latency_us"][key] for p in points])
                for key in points[0]["latency_us"]
            }
        ours, theirs = pair["sealward"], pair["naive"]
        pair["throughput_ratio"] = ours["per_second"] / theirs["per_second"]
        pair["cpu_ratio"] = ours["cpu_us"] / theirs["cpu_us"]
        folded[str(count)] = pair
    return folded


def _rows() -> dict[str, Any]:
    case = json.loads((SHIPPED / "golden.json").read_text())["cases"][0]
    return {
        tensor["name"]: np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        for tensor in case["inputs"]
    }


def _same_numbers(suite: SuiteUnderLoad, rows: dict[str, Any]) -> None:
    """What is compared must be the same work: the suite's numbers are bare ONNX Runtime's."""
    runtime = session(SHIPPED / "model.onnx")
    names = [output.name for output in runtime.get_outputs()]
    expected = dict(zip(names, runtime.run(names, rows), strict=True))
    with suite.client() as client:
        result = client.infer(MODEL, rows)
    for name, value in result.outputs.items():
        if not np.array_equal(value, expected[name]):
            raise SystemExit(f"the suite's {name} is not what bare ONNX Runtime says")


def _bare(body: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bare", str(SHIPPED / "model.onnx"), str(body), "2"]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
