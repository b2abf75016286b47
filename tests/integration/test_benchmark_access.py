"""The benchmark of access runs, and says which promise is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.access.local import POLICIES, run
from benchmarks.access.report import rows, table


def test_session_and_decision_are_measured(tmp_path: Path) -> None:
    found = run(1, 0.1, tmp_path)
    assert found["policies"] == POLICIES
    # What is not cached costs a round trip and an evaluation.
    assert 0 < found["cached_us"]["median"] < found["uncached_us"]["median"]


def results(**changes: Any) -> dict[str, Any]:
    """Results that keep every promise exactly."""
    shares = {"p50_ms": 1.0, "p99_ms": 2.0}
    found: dict[str, Any] = {
        "when": "2026-01-01T00:00:00Z",
        "machine": {"cpu": "x", "cores": 2, "filesystem": "ext4", "kernel": "6", "python": "3.11",
                    "grpcio": "1"},
        "rounds": 1,
        "load_average": [0.0, 0.0],
        "local": {
            "policies": 200, "cached_us": {"median": 20.0}, "uncached_us": {"median": 2000.0},
        },
        "logins": {
            "in_flight": 2, "logins_per_second": 5.0, "login_p50_ms": 200.0, "refused": 7,
            "quiet": {"p50_us": 1000.0, "p99_us": 1.0, "per_second": 1.0, "errors": 0},
            "beside": {"p50_us": 1250.0, "p99_us": 1.0, "per_second": 1.0, "errors": 0},
        },
        "revocations": {
            "count": 1000, "unary": {**shares, "max_ms": 1000.0},
            "streams": {**shares, "max_ms": 5000.0},
        },
    }  # fmt: skip
    return found | changes


def test_each_promise_is_judged_by_its_own_figure() -> None:
    assert [row.met for row in rows(results())] == [True] * 5
    local = {"policies": 200, "cached_us": {"median": 20.1}, "uncached_us": {"median": 2001.0}}
    assert [row.met for row in rows(results(local=local))] == [False, False, True, True, True]
    late = results()["revocations"]
    late["unary"]["max_ms"], late["streams"]["max_ms"] = 1001.0, 5001.0
    assert [row.met for row in rows(results(revocations=late))] == [True] * 3 + [False] * 2
    slow = results()["logins"]
    slow["beside"]["p50_us"] = 1251.0
    page = table(results(logins=slow))
    assert page.count("**not met**") == 1
    assert "5.0 a second, p50 200 ms; 7 were refused" in page
