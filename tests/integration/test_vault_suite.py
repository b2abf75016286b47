"""A suite whose keys are in a real Vault: the path of a request, restarts, and Vault away."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sealward.cli.errors import CliError
from sealward.cli.status import collect
from tests.support.searching import Searched, scraped
from tests.support.suites import RunningSuite, rest_json, running, until
from tests.support.vault import VaultServer

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    started = VaultServer(tmp_path_factory.mktemp("vault"), storage="file").start()
    # What Vault hands out, in clear: for the test that looks for it everywhere.
    options = {"file_path": str(started.folder / "raw.log"), "log_raw": "true"}
    started.ask("put", "sys/audit/raw", {"type": "file", "options": options})
    yield started
    started.stop()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, server: VaultServer) -> Iterator[RunningSuite]:
    folder = tmp_path_factory.mktemp("suite") / "data"
    with running(folder, provider="vault", vault=server) as started:
        yield started


def trouble(suite: RunningSuite) -> tuple[str, str]:
    keys = collect(suite.suite)["keys"]
    return keys["state"], keys.get("trouble", "")


def test_infer_verify_restart(suite: RunningSuite, tmp_path: Path) -> None:
    ada = suite.user("ada")
    file = tmp_path / "in.json"
    file.write_text(rest_json())
    before = suite.sealward("infer", "breast-cancer", "--input", str(file), "--user", ada)
    found = suite.sealward("status")
    assert (found["ready"], found["keys"]["provider"]) == (True, "vault")
    assert (found["keys"]["state"], found["keys"]["trouble"]) == ("ready", "")
    suite.down()
    # Without a word about Vault: the folder remembers.
    suite.up()
    answer = suite.ask(ada)
    shown = suite.event(before["event_id"])["span"]["attributes"]
    assert shown["sealward.actor.id"] == ada
    until(lambda: suite.published() > answer.proof.log_index, "published")
    log, vkey = suite.suite.log_dir, suite.suite.vkey_file
    verified = suite.sealward("audit", "verify", "--log", str(log), "--vkey", str(vkey))
    assert verified["verified"] is True
    # Nothing of the embedded provider was ever made.
    assert not suite.suite.unlock_file.exists()
    assert not (suite.suite.root / "keys" / "keystore").exists()


def test_nobody_is_needed_when_keys_is_killed(suite: RunningSuite) -> None:
    ada = suite.user("ada")
    suite.restarted("keys", suite.kill("keys"))
    until(lambda: suite.sealward_any("healthcheck", "keys") == 0, "keys serve")
    suite.sealward("certs", "rotate", "--user", ada)
    suite.ask(ada)


def test_keys_are_rotated_and_old_versions_destroyed(suite: RunningSuite) -> None:
    ada = suite.user("ada")
    before = suite.ask(ada)
    rotated = suite.sealward("keys", "rotate")["rotated"]
    assert {row["purpose"] for row in rotated} >= {"model", "audit-segment", "session"}
    suite.sealward("keys", "rewrap", "--retire")
    rows = {row["purpose"]: row for row in suite.sealward("keys", "status")["keys"]}
    assert rows["model"]["newest"] >= 2
    assert rows["model"]["lowest"] == rows["model"]["newest"]
    # What was sealed before opens, now and after a restart.
    suite.down()
    suite.up()
    suite.event(before.proof.event_id)
    suite.ask(ada)


def test_predictions_go_on_while_vault_is_sealed(suite: RunningSuite, server: VaultServer) -> None:
    ada = suite.user("ada")
    suite.ask(ada)
    server.seal()
    try:
        until(lambda: trouble(suite) == ("degraded", "vault-sealed"), "it is noticed")
        suite.ask(ada)
        found = suite.sealward("keys", "status", code=1)["error"]
        assert (found["trouble"], found["advice"]) == ("vault-sealed", "unseal Vault")
        assert suite.sealward("healthcheck", "keys", code=1)["error"]["missing"] == ["keystore"]
        error = suite.sealward("certs", "rotate", "--user", ada, code=3)["error"]
        assert error["status"] == "UNAVAILABLE"
        with pytest.raises(CliError):
            suite.user("grace")
    finally:
        server.unseal()
    until(lambda: trouble(suite) == ("ready", ""), "it recovers")
    suite.sealward("certs", "rotate", "--user", ada)
    suite.ask(ada)

    def recorded() -> set[str]:
        events = [e for e in suite.events(limit=1000) if e.type == "keys.provider"]
        return {event.target for event in events}

    until(lambda: recorded() >= {"vault-sealed", "ready"}, "it is in the log")


def test_what_vault_handed_out_is_found_nowhere(suite: RunningSuite, server: VaultServer) -> None:
    """Branch keys, tokens and secret ids are in no file, log, metric, record or environment."""
    ada = suite.user("ada")
    suite.ask(ada, patient="patient-1")
    suite.restarted("keys", suite.kill("keys"))
    suite.answers_again(ada)
    until(lambda: suite.sealward_any("healthcheck", "keys") == 0, "keys serve")
    keys, words = handed_out(server)
    assert len(keys) >= 6
    assert len(words) >= 3
    searched = Searched(keys)

    def holds(data: bytes) -> bool:
        return searched.found_in(data) or any(word in data for word in words)

    for metrics in scraped(suite):
        assert not holds(metrics)
    for name in ("keys", "audit", "inference", "gateway", "valkey"):
        for kind in ("environ", "cmdline"):
            with suppress(PermissionError):
                assert not holds(Path(f"/proc/{suite.pid(name)}/{kind}").read_bytes())
    for command in (("keys", "status"), ("status",), ("config", "show")):
        assert not holds(str(suite.sealward(*command)).encode())
    found = {
        path.relative_to(suite.suite.root)
        for path in suite.suite.root.rglob("*")
        if path.is_file() and holds(path.read_bytes())
    }
    # The login itself has to be somewhere: of this account, closed to all others.
    kept = Path("keys", "vault")
    assert found == {kept / "secret-id", kept / "shredder-secret-id"}
    planted = suite.suite.root / "planted"
    for secret in (next(iter(keys)), base64.b64encode(next(iter(keys))), next(iter(words))):
        planted.write_bytes(b"x" + secret)
        assert holds(planted.read_bytes())
    planted.unlink()


def handed_out(server: VaultServer) -> tuple[set[bytes], set[bytes]]:
    """The keys, and the tokens and secret ids, in the answers that Vault gave."""
    keys, words = set(), set()
    for line in (server.folder / "raw.log").read_text().splitlines():
        entry = json.loads(line)
        answer = entry.get("response") or {}
        if plaintext := (answer.get("data") or {}).get("plaintext"):
            keys.add(base64.b64decode(plaintext))
        if secret := (answer.get("data") or {}).get("secret_id"):
            words.add(secret.encode())
        if token := (answer.get("auth") or {}).get("client_token"):
            words.add(token.encode())
    return keys, words - {server.token.encode()}


def test_a_folder_with_a_keystore_does_not_move(
    tmp_path: Path, server: VaultServer, suite: RunningSuite
) -> None:
    ours = RunningSuite(tmp_path / "data", provider="embedded")
    ours.up()
    ours.down()
    login = server.set_up(tmp_path / "credentials")
    flags = ("--vault", server.address, "--vault-credentials", str(login.folder))
    error = ours.sealward("up", "--detach", *flags, code=2)["error"]
    assert "began with its own keystore" in error["message"]
    # Nor does a running one listen.
    error = suite.sealward("up", "--detach", *flags, code=2)["error"]
    assert "is running" in error["message"]


def test_up_says_what_is_missing(tmp_path: Path, server: VaultServer) -> None:
    environ = {"SEALWARD_KEYS_START_SECONDS": "0.5"}
    fresh = RunningSuite(tmp_path / "data", environ, provider="embedded")
    error = fresh.sealward("up", "--detach", "--vault", server.address, code=2)["error"]
    assert "no login to Vault" in error["message"]
    assert "sealward vault setup" in error["advice"]
    (tmp_path / "empty").mkdir()
    flags = ("--vault", server.address, "--vault-credentials", str(tmp_path / "empty"))
    error = fresh.sealward("up", "--detach", *flags, code=2)["error"]
    assert "holds no login" in error["message"]
    login = server.set_up(tmp_path / "credentials")
    dead = ("--vault", "http://127.0.0.1:9", "--vault-credentials", str(login.folder))
    error = fresh.sealward("up", "--detach", *dead, code=3)["error"]
    assert "Vault cannot be reached (http://127.0.0.1:9)" in error["message"]
    # The address may be put right; the login is kept.
    fresh.sealward("up", "--detach", "--vault", server.address)
    try:
        assert fresh.sealward("status")["keys"]["provider"] == "vault"
        kept = json.loads(fresh.suite.vault_file.read_bytes())
        assert (kept["addresses"], kept["prefix"]) == (server.address, login.prefix)
    finally:
        fresh.down()
