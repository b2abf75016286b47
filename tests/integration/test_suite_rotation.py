"""Everything is rotated under load: no failed call, no ended session, nothing unreadable."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from benchmarks.soak.load import Caller, SdkCall, StockCall
from benchmarks.soak.rotation import ROW, SERVICES, Soak
from sealward.cli.certs import collect
from tests.support.suites import RunningSuite, running, until
from tests.support.vault import shared


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("provider", "rounds"), [("embedded", 2), ("vault", 2)])
def test_rotations_of_everything_lose_no_call(tmp_path: Path, provider: str, rounds: int) -> None:
    """`make soak-rotation` does twenty."""
    up: list[str] = []
    if provider == "vault":
        server = shared()
        login = server.set_up(tmp_path / "credentials")
        up = ["--vault", server.address, "--vault-credentials", str(login.folder)]
        up += ["--vault-ca", str(server.tls[2])] if server.tls else []
    report = Soak(tmp_path / "data", up=up).run(rounds)
    found = report.as_json()
    assert report.ok, found
    assert report.rounds == rounds
    assert found["failed_calls"] == 0
    assert found["unreadable"] == []
    assert min(report.calls.values()) > 20
    # Models, the session key, the witness's, and keys of every log: each of them in each round.
    assert report.rewrapped >= rounds * 7


def serials(suite: RunningSuite, holder: str) -> set[str]:
    return {row["serial"] for row in collect(suite.suite) if row["holder"] == holder}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_certificates_are_renewed_at_half_life_without_a_failed_call(tmp_path: Path) -> None:
    """Lives of 10 and 60 seconds: three renewals of each service, one of the caller."""
    environ = {f"SEALWARD_{name}_CERTIFICATE_SECONDS": "10" for name in SERVICES}
    environ["SEALWARD_KEYS_USER_CERTIFICATE_SECONDS"] = "60"
    with running(tmp_path / "data", environ) as suite:
        user = suite.user("ada")
        profile = suite.suite.clients / user
        token = suite.token(user)
        holders = [*(f"service {name.lower()}" for name in SERVICES), f"user {user}"]
        wanted = dict.fromkeys(holders, 4) | {f"user {user}": 2}
        seen: dict[str, set[str]] = {holder: set() for holder in holders}
        callers = [
            Caller("sdk", lambda: SdkCall(profile, ROW)),
            Caller("stock", lambda: StockCall(profile, ROW)),
        ]
        for caller in callers:
            caller.start()
        ended = threading.Event()

        def renewed() -> bool:
            for holder in holders:
                seen[holder] |= serials(suite, holder)
            ended.wait(0.5)
            return all(len(seen[holder]) >= wanted[holder] for holder in holders)

        try:
            until(renewed, "every certificate was renewed", 120)
            for caller in callers:
                caller.more(5)
        finally:
            for caller in callers:
                caller.stop()
        assert [caller.failed for caller in callers] == [[], []]
        assert min(caller.ok for caller in callers) > 50
        # The session of the beginning: it is bound to the key pair, which stayed.
        assert suite.token(user) == token
