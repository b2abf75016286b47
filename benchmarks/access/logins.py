"""Predictions alone and beside a flood of logins, in turns of the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.generator import Generator
from benchmarks.measure import percentile
from benchmarks.suite import SuiteUnderLoad

_CORE = 1
_IN_FLIGHT = 2


def run(
    suite: SuiteUnderLoad,
    body: Path,
    users: Sequence[str],
    password: str,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Measure the two in turns; return medians."""
    generator = Generator(_CORE)
    target = suite.target()

    def load() -> dict[str, Any]:
        return generator.run(
            target, body, _IN_FLIGHT, warm=0.5, seconds=seconds, sample=lambda: 0.0
        )

    quiet, beside, floods = [], [], []
    for _ in range(rounds):
        quiet.append(load())
        command = [sys.executable, "-m", "benchmarks.access.flood", str(suite.suite.root)]
        command += [str(seconds + 2.0), password, *users]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
            beside.append(load())
            out, _ = flood.communicate(timeout=120)
        if flood.returncode:
            raise SystemExit("the flood of logins failed")
        floods.append(json.loads(out))
    answered = [time for flood in floods for time in flood.pop("latencies")]
    refused = sum(
        count
        for flood in floods
        for name, count in flood.items()
        if name not in ("logins", "seconds")
    )
    return {
        "in_flight": _IN_FLIGHT,
        "quiet": _medians(quiet),
        "beside": _medians(beside),
        "logins_per_second": sum(flood.get("logins", 0) for flood in floods)
        / sum(flood["seconds"] for flood in floods),
        "login_p50_ms": percentile(answered, 0.5) * 1e3 if answered else None,
        "refused": refused,
        "raw": {"quiet": quiet, "beside": beside, "floods": floods},
    }


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        "p50_us": median(one["latency_us"]["p50"] for one in runs),
        "p99_us": median(one["latency_us"]["p99"] for one in runs),
        "per_second": median(one["per_second"] for one in runs),
        "errors": sum(one["errors"] for one in runs),
    }
