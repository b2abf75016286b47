"""The demonstration, as `make demo` runs it."""

from __future__ import annotations

from pathlib import Path

from tests.support.suites import RunningSuite


def test_the_demonstration_succeeds_again_and_again(tmp_path: Path) -> None:
    demo = RunningSuite(tmp_path / "data")
    for _ in range(2):
        found = demo.sealward("demo")
        assert found["ok"] is True
        assert found["problems"] == []
        assert found["calls"] == 143 + 111
        assert found["models"]["breast-cancer"]["accuracy"] > 0.95
        assert found["denied"]["reason"] == "POLICY_DENIED"
        assert found["tampered"]["entry"] in range(found["tampered"]["size"])
        assert found["receipt"]["log_index"] == found["tampered"]["entry"]
        assert demo.suite.supervisor_pid() is None
