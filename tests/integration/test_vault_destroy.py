"""Keys in a real Vault destroyed on purpose: by the shredder's login alone, for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.seal.context import EncryptionContext
from services.keys.providers.vault.names import Names, derivation_context
from tests.integration.test_suite_destroy import SETTINGS, becomes, destroy, shown
from tests.support.suites import RunningSuite, running, until
from tests.support.vault import Login, VaultServer, shared

SESSION = EncryptionContext("default", "session", "gateway")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    folder = tmp_path_factory.mktemp("vault-destroy")
    with running(folder / "data", SETTINGS, provider="vault") as started:
        yield started


def of(suite: RunningSuite) -> tuple[VaultServer, Names, Login]:
    server = suite.vault
    assert server is not None
    prefix = server.prefixes[-1]
    folder = suite.suite.root.with_name(f"{suite.suite.root.name}-credentials")
    return server, Names(prefix), Login(folder, prefix)


def test_a_key_is_gone_from_vault_and_the_shredder_is_brought_when_it_is_needed(
    own: RunningSuite, tmp_path: Path
) -> None:
    server, names, login = of(own)
    ada = own.user("ada")
    own.user("pia", "privacy-officer")
    own.ask(ada)
    key = "kek-default.session"
    body = {"context": derivation_context(SESSION)}
    kept = server.ask("post", f"{names.transit}/datakey/plaintext/{key}", body)["data"]
    opened = {**body, "ciphertext": kept["ciphertext"]}
    assert server.status("post", f"{names.transit}/decrypt/{key}", opened)[0] == 200

    # Kept away, as rules that ask for two people may want it.
    for folder in (own.suite.vault_login, own.suite.root / "keys" / "vault"):
        for path in folder.glob("shredder-*"):
            path.unlink()
    made = destroy(own, "request", "--purpose", "session", "--reason", "a token was stolen")
    destroy(own, "approve", made["id"], "--as", "pia")
    becomes(own, made, "executing", "KEYSTORE_UNAVAILABLE")
    # Nothing of ours opens it any more, though Vault still could.
    until(lambda: own.sealward_any("session", "list", "--as", "pia") != 0, "sessions have ended")
    assert server.status("post", f"{names.transit}/decrypt/{key}", opened)[0] == 200

    fresh = tmp_path / "fresh"
    server.sealward("secret-id", fresh, "--prefix", login.prefix)
    own.sealward("vault", "shredder-login", "--vault-credentials", str(fresh))
    becomes(own, made, "done")
    through = shown(own, made)["destroyed_through_version"]
    state = server.ask("get", f"{names.transit}/keys/{key}")["data"]
    assert state["min_available_version"] == state["min_decryption_version"] == through + 1
    assert sorted(map(int, state["keys"])) == [through + 1]
    # Not even by Vault's own administrator, and not by asking for less.
    assert server.status("post", f"{names.transit}/decrypt/{key}", opened)[0] == 400
    config = {"min_decryption_version": 1}
    server.status("post", f"{names.transit}/keys/{key}/config", config)
    assert server.status("post", f"{names.transit}/decrypt/{key}", opened)[0] == 400
    own.login(ada)
    own.answers_again(ada)
    own.verify()


def test_versions_are_retired_again_and_again(own: RunningSuite) -> None:
    own.login(own.user("ada"))
    for _ in range(2):
        own.sealward("keys", "rotate", "--purpose", "model")
        retired = own.sealward("keys", "rewrap", "--purpose", "model", "--retire")["retired"]
        assert [row["purpose"] for row in retired] == ["model"]


def test_a_login_for_one_act(tmp_path: Path) -> None:
    server = shared()
    login = server.set_up(tmp_path / "credentials", "--secret-id-uses", "2")
    environ = {**SETTINGS}
    suite = RunningSuite(tmp_path / "data", environ, provider="vault", vault=server)
    suite.sealward("up", "--detach", "--vault", server.address,
                   "--vault-credentials", str(login.folder),
                   *(["--vault-ca", str(server.tls[2])] if server.tls else []))  # fmt: skip
    try:
        codes = []
        for act in range(3):
            suite.sealward("keys", "rotate", "--purpose", "model")
            code = 3 if act == 2 else 0
            answer = suite.sealward("keys", "rewrap", "--purpose", "model", "--retire", code=code)
            codes.append(answer)
        assert "sealward vault shredder-login" in codes[2]["error"]["message"]
        fresh = tmp_path / "fresh"
        server.sealward("secret-id", fresh, "--prefix", login.prefix)
        suite.sealward("vault", "shredder-login", "--vault-credentials", str(fresh))
        assert suite.sealward("keys", "rewrap", "--purpose", "model", "--retire")["retired"]
    finally:
        suite.down()
