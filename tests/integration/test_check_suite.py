"""`sealward check` on a running deployment: what it says, what it leaves, who can verify it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.check.catalogue import ROWS
from tests.support.suites import RunningSuite, running, until


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    with running(tmp_path_factory.mktemp("check") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def report(own: RunningSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every row, as the command wrote it."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    own.sealward("check", "--disrupt", "--report", str(file))
    return file


def rows_of(found: Any) -> dict[str, Any]:
    return {row["id"]: row for row in found["rows"]}


def test_no_row_fails(report: Path) -> None:
    found = json.loads(report.read_bytes())
    rows = rows_of(found)
    assert list(rows) == [row.id for row in ROWS]
    assert {name: row["reason"] for name, row in rows.items() if row["state"] == "failed"} == {}
    assert sum(found["counts"].values()) == len(ROWS)
    assert all(row["duty"] and row["rule"].startswith("45 CFR") for row in rows.values())
    assert "no certification" in " ".join(found["statement"].split())
    assert report.stat().st_mode & 0o777 == 0o600


def test_nothing_of_it_is_left(own: RunningSuite, report: Path) -> None:
    assert report.exists()
    users = [u for u in own.sealward("user", "list")["users"] if u["user"].startswith("zzcheck-")]
    assert users
    assert all(user["disabled"] for user in users)
    assert not [
        session for session in own.sealward("session", "list")["sessions"]
        if session["user"].startswith("zzcheck-")
    ]  # fmt: skip
    assert not list(own.suite.clients.glob("zzcheck-*"))
    assert not own.sealward("audit", "review", "list")["items"]


def test_anybody_verifies_it_with_the_key_of_the_log(
    own: RunningSuite, report: Path, tmp_path: Path
) -> None:
    vkey = tmp_path / "log.vkey"
    vkey.write_bytes(own.suite.vkey_file.read_bytes())
    verify = [sys.executable, "-m", "sealward.cli.main", "check", "verify", "--vkey", str(vkey)]

    def verified(file: Path) -> subprocess.CompletedProcess[str]:
        # Nothing but the report and the key: no folder, no suite.
        return subprocess.run(
            [*verify, str(file), "--json"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = verified(report)
    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)["event_id"]
    shown = own.event(event)
    assert shown["type"] == "check.report"
    digest = json.loads(report.read_bytes())["attestation"]["sha256"]
    assert shown["span"]["attributes"]["sealward.target"] == f"safeguards/{digest}"
    changed = tmp_path / "changed.json"
    text = report.read_text()
    changed.write_text(text.replace('"state": "met"', '"state": "not-testable"', 1))
    assert changed.read_text() != text
    done = verified(changed)
    assert done.returncode == 1
    assert "does not vouch" in done.stdout


def test_the_last_report_is_compared(own: RunningSuite, report: Path, tmp_path: Path) -> None:
    found = own.sealward("check", "--row", "au-08", "--diff", str(report))
    assert found["changes"] == []
    assert found["compared_with"]["ended"]
    forged = tmp_path / "forged.json"
    forged.write_text(report.read_text().replace('"met"', '"failed"'))
    error = own.sealward("check", "--row", "AU-08", "--diff", str(forged), code=1)["error"]
    assert "report" in error["message"]


def test_read_only_makes_nobody(own: RunningSuite, report: Path) -> None:
    assert report.exists()
    before = len(own.sealward("user", "list")["users"])
    found = own.sealward("check", "--read-only")
    assert len(own.sealward("user", "list")["users"]) == before
    rows = rows_of(found)
    for row in ROWS:
        if row.writes:
            assert rows[row.id]["state"] == "not-testable", row.id
            assert "read-only" in rows[row.id]["reason"]
    assert found["counts"]["met"] >= 3
    assert found["counts"]["failed"] == 0


def test_an_interrupted_check_takes_away_what_it_made(own: RunningSuite) -> None:
    command = [
        sys.executable, "-m", "sealward.cli.main", "check", "--row", "AC-01",
        "--dir", str(own.suite.root),
    ]  # fmt: skip
    before = {u["user"] for u in own.sealward("user", "list")["users"]}

    def made() -> list[Any]:
        users = own.sealward("user", "list")["users"]
        return [user for user in users if user["user"] not in before]

    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own.environ
    )
    try:
        until(lambda: bool(made()), "the check has made somebody")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert made()
    assert all(user["disabled"] for user in made())


def test_by_addresses_alone(own: RunningSuite, tmp_path: Path) -> None:
    found = own.sealward(
        "check", "--row", "AU-08", "--row", "AU-03", "--row", "TS-01",
        "--endpoints", str(own.suite.endpoints_file), "--credentials", str(own.suite.admin),
    )  # fmt: skip
    rows = rows_of(found)
    assert [rows[name]["state"] for name in ("AU-08", "TS-01")] == ["met", "met"]
    assert rows["AU-03"]["state"] == "not-testable"
    own.sealward("check", "--endpoints", str(own.suite.endpoints_file), code=2)
    assert tmp_path.exists()


def test_wrong_use_and_no_suite(own: RunningSuite, tmp_path: Path) -> None:
    own.sealward("check", "--row", "XX-99", code=2)
    nowhere = RunningSuite(tmp_path / "nowhere")
    nowhere.sealward("check", code=3)


def test_cryptographic_libraries(own: RunningSuite) -> None:
    found = own.sealward("check", "--fips")
    assert found["validation"] == "NOT VALIDATED"
    named = {library["library"]: library["validation"] for library in found["libraries"]}
    assert {"cryptography", "grpcio", "tink", "Python ssl"} <= set(named)
    assert set(named.values()) == {"NOT VALIDATED"}
