"""The benchmark of the audit log runs, finds every entry again, and says which target is met."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.audit.__main__ import run
from benchmarks.audit.report import page
from benchmarks.audit.targets import TARGETS, judge

SECONDS = 0.2


def test_the_service_is_measured_and_nothing_is_lost(tmp_path: Path) -> None:
    results = run(tmp_path, 1, SECONDS, 300, ("append", "otlp", "million"))
    for row in results["otlp"].values():
        assert row["acknowledged"] >= 512
        assert row["lost"] == row["repeated"] == 0
    million = results["million"]
    assert million["verify"]["entries"] >= 300
    # One in ten is for research and stands in the accounting.
    assert million["access_ms"]["proofs_each"] > million["accounting_ms"]["proofs_each"] > 0
    assert {row["part"] for row in results["targets"]} == {"append", "otlp"}
    assert "a log of 300 events" in page(results).lower()


def test_the_engine_runs_beside_tessera(tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed (apt-get install golang)")
    results = run(tmp_path, 1, SECONDS, 0, ("engine",))
    for row in results["engine"].values():
        assert row["ours"]["per_second"] > 0
        assert row["ratio"] > 0
        assert row["ratio_indexed"] > 0
    assert page(results).count(" writers, beside Tessera |") == 2


def measured(**changes: Any) -> dict[str, Any]:
    """Results that reach every target exactly."""
    million = {
        "events": 1_000_000, "verify": {"seconds": 16.0, "entries": 2_000_000},
        "accounting_ms": {"p50": 100}, "access_ms": {"p50": 100}, "memory_mib": 150,
        "memory_after_restart_mib": 90,
    }  # fmt: skip
    return {
        "engine": {"1": {"ratio": 3}, "16": {"ratio": 5}, "256": {"ratio": 2}},
        "append": {"256": {"per_second": 3000}},
        "otlp": {
            "2": {"per_second": 20_000, "lost": 0}, "4": {"per_second": 100, "lost": 0},
        },
        "million": {**million, **changes},
    }  # fmt: skip


def test_a_figure_that_reaches_its_target_meets_it() -> None:
    rows = judge(measured())
    assert len(rows) == len(TARGETS)
    assert all(row["met"] for row in rows)


def test_a_target_that_is_missed_is_named() -> None:
    results = measured(memory_after_restart_mib=151, verify={"seconds": 8.1, "entries": 1_000_000})
    results["otlp"]["4"]["lost"] = 1
    results["engine"]["16"]["ratio"] = 4.9
    missed = [row["name"] for row in judge(results) if not row["met"]]
    assert len(missed) == 4
    assert missed[0] == "durable appends with a receipt, 16 writers, beside Tessera"


def test_a_smaller_log_says_nothing_about_a_million_entries() -> None:
    assert "million" not in {row["part"] for row in judge(measured(events=999_999))}
