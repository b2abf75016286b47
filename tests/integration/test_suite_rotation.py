"""Everything is rotated under load: no failed call, no ended session, nothing unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak.rotation import Soak


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_rotations_of_everything_lose_no_call(tmp_path: Path) -> None:
    """`make soak-rotation` does twenty."""
    report = Soak(tmp_path / "data").run(2)
    found = report.as_json()
    assert report.ok, found
    assert report.rounds == 2
    assert found["failed_calls"] == 0
    assert found["unreadable"] == []
    assert min(report.calls.values()) > 20
    # Models, the session key, the witness's, and keys of every log: each of them in each round.
    assert report.rewrapped >= 2 * 7
