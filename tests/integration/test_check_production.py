"""`sealward check` with sessions in a real Redis (TLS, ACL) and keys in a real Vault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.check.catalogue import ROWS
from tests.conftest import CertificateAuthority
from tests.support.redis_server import RedisServer
from tests.support.suites import RunningSuite, running
from tests.support.vault import required_binary, shared

# The first run builds the Vault server.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def production(
    tmp_path_factory: pytest.TempPathFactory, authority: CertificateAuthority
) -> Iterator[RunningSuite]:
    required_binary()
    folder = tmp_path_factory.mktemp("production")
    server = RedisServer(folder / "redis", authority).start()
    suite = RunningSuite(folder / "data", provider="vault", vault=shared())
    try:
        credentials = server.credentials(folder / "credentials")
        suite.up("--redis", server.url, "--redis-credentials", str(credentials))
        yield suite
    finally:
        suite.down()
        server.stop()


def rows_of(found: Any) -> dict[str, Any]:
    return {row["id"]: row for row in found["rows"]}


def test_no_row_fails_on_redis_and_vault(production: RunningSuite, tmp_path: Path) -> None:
    production.sealward("audit", "logs", "freeze")
    first = tmp_path / "first.json"
    production.sealward("check", "--row", "AU-08", "--report", str(first))
    report = tmp_path / "report.json"
    production.sealward("check", "--disrupt", "--diff", str(first), "--report", str(report))
    rows = rows_of(json.loads(report.read_bytes()))
    assert {name: row["reason"] for name, row in rows.items() if row["state"] == "failed"} == {}
    assert set(rows) == {row.id for row in ROWS}
    seen = {name: " ".join(row["evidence"]) for name, row in rows.items()}
    assert "the session store refuses: no certificate" in seen["ID-01"]
    assert "provider vault" in seen["KM-01"]
    # A log that has ended says how long it is kept, and there was a report before.
    assert [rows[name]["state"] for name in ("AU-06", "EV-01", "KM-01")] == ["met"] * 3
    assert "Vault" in rows["CP-01"]["reason"]


def test_an_idle_session_ends(tmp_path: Path) -> None:
    with running(tmp_path / "data", {"SEALWARD_GATEWAY_IDLE_SECONDS": "5"}) as suite:
        found = suite.sealward("check", "--row", "AC-04", "--patience", "20")
    (row,) = found["rows"]
    assert (row["state"], row["reason"]) == ("met", "")
    assert "though the connection was kept alive" in " ".join(row["evidence"])


def test_where_the_policy_asks_people_for_a_second_factor(tmp_path: Path) -> None:
    profile = {"SEALWARD_GATEWAY_POLICY_PROFILE": "second-factor"}
    rows = ("AC-03", "AC-06", "AU-05", "AU-07", "ID-02", "MN-01")
    with running(tmp_path / "data", profile) as suite:
        asked = [word for row in rows for word in ("--row", row)]
        found = suite.sealward("check", "--profile", "nprm", *asked)
    states = {row["id"]: (row["state"], row["reason"]) for row in found["rows"]}
    assert states == dict.fromkeys(rows, ("met", ""))
    assert "asks people for a second factor" in str(rows_of(found)["ID-02"]["evidence"])
    assert all("proposed" in rows_of(found)[row]["rule"] for row in ("AC-03", "ID-02"))
