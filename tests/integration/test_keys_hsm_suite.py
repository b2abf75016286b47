"""A suite whose keystore a PKCS#11 token unlocks: moved there and back, backed up and restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyrage
import pytest

from sealward.kit.enroll import write_private
from sealward.seal.rootkey import new_identity
from tests.support.softhsm import PIN, SoftHsm
from tests.support.suites import RunningSuite, until


def test_to_the_token_through_a_loss_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = SoftHsm(tmp_path / "hsm", monkeypatch.setenv)
    settings = token.settings(token.make("root"))
    recovery = new_identity()
    recipients = tmp_path / "recipients"
    recipients.write_text(str(pyrage.x25519.Identity.from_str(recovery).to_public()))
    common = {"SEALWARD_KEYS_RECOVERY_RECIPIENTS_FILE": str(recipients)}
    suite = RunningSuite(tmp_path / "data", common, provider="embedded")
    try:
        suite.up()
        name = suite.user("ada")
        before = suite.ask(name)
        running = suite.sealward("keys", "unlock-with", "--pkcs11", code=3)["error"]["message"]
        assert "is running" in running
        suite.down()

        # To the token: the secret opens nothing any more.
        suite.environ |= settings
        moved = suite.sealward("keys", "unlock-with", "--pkcs11")
        assert moved["unlocked_by"] == "root.jwe"
        secret = suite.suite.unlock_file
        secret.unlink()
        suite.up()
        suite.login(name)
        suite.answers_again(name)
        assert not secret.exists()
        assert suite.event(before.proof.event_id)["actor"] == name
        until(
            lambda: any(row.type == "keys.unlock-change" for row in suite.events(limit=100)),
            "the change is in the log",
        )
        file = tmp_path / "backup"
        suite.sealward("keys", "backup", "--to", str(file))
        assert suite.sealward("keys", "drill", "--from", str(file))["passed"]
        assert PIN.encode() not in file.read_bytes()
        suite.down()

        # The folder is lost; the token and the backup are left.
        shutil.rmtree(suite.suite.root / "keys" / "keystore")
        suite.sealward("keys", "restore", "--from", str(file))
        suite.up()
        suite.login(name)
        suite.answers_again(name)
        suite.down()

        # The token is lost as well: the recovery identity is left.
        for key in settings:
            suite.environ.pop(key)
        identity = tmp_path / "identity"
        write_private(identity, recovery.encode())
        refused = suite.sealward("up", "--detach", code=1)["error"]["message"]
        assert "unlock" in refused
        restore = ("keys", "restore", "--from", str(file))
        suite.sealward(*restore, "--recovery-identity", str(identity))
        suite.up()
        suite.login(name)
        suite.answers_again(name)
    finally:
        suite.down()


def test_a_token_that_is_not_there_refuses_the_start_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = SoftHsm(tmp_path / "hsm", monkeypatch.setenv)
    suite = RunningSuite(tmp_path / "data", token.settings(token.make("root")), provider="embedded")
    try:
        suite.up()
        keystore = suite.suite.root / "keys" / "keystore"
        assert (keystore / "root.jwe").exists()
        assert not suite.suite.unlock_file.exists()
        suite.down()
        suite.environ["SEALWARD_KEYS_PKCS11_TOKEN"] = "gone"
        message = suite.sealward("up", "--detach", code=3)["error"]["message"]
        assert "there is no token gone" in message
    finally:
        suite.down()
