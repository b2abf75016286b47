"""Where a suite's keys are: decided once, kept in the folder, told to the keys service alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sealward.cli.errors import CliError, Exit
from sealward.cli.processes import service_environ
from sealward.cli.provider import VaultChoice, choose, uses_vault, vault_environ
from sealward.cli.suite import SERVICES, Suite

URL = "https://vault.example:8200"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    suite = Suite.at(tmp_path / "data")
    suite.create({})
    return suite


def credentials(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".").replace("_", "-")).write_text(text)
    return folder


def approle(folder: Path) -> Path:
    return credentials(
        folder,
        role_id="role",
        wrapped_secret_id="wrapped",
        shredder_role_id="other",
        shredder_wrapped_secret_id="wrapped too",
        vault__json=json.dumps({"prefix": "clinic", "namespace": "team"}),
    )


def test_a_suite_has_a_keystore_unless_it_is_told(suite: Suite) -> None:
    choose(suite, VaultChoice(), {})
    assert not uses_vault(suite, {})
    assert vault_environ(suite) == {}
    assert "SEALWARD_KEYS_UNLOCK_FILE" in service_environ(suite, "keys", {})


def test_what_it_was_told_is_kept(suite: Suite, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    ca.write_text("PEM")
    choose(suite, VaultChoice(URL, approle(tmp_path / "c"), ca), {})
    assert uses_vault(suite, {})
    choose(suite, VaultChoice(), {})
    environ = service_environ(suite, "keys", {})
    login = suite.vault_login
    assert {k: v for k, v in environ.items() if "VAULT" in k or "PROVIDER" in k} == {
        "SEALWARD_KEYS_PROVIDER": "vault",
        "SEALWARD_KEYS_VAULT_ADDR": URL,
        "SEALWARD_KEYS_VAULT_NAMESPACE": "team",
        "SEALWARD_KEYS_VAULT_PREFIX": "clinic",
        "SEALWARD_KEYS_VAULT_CACERT": str(login / "ca.pem"),
        "SEALWARD_KEYS_VAULT_ROLE_ID_FILE": str(login / "role-id"),
        "SEALWARD_KEYS_VAULT_WRAPPED_SECRET_ID_FILE": str(login / "wrapped-secret-id"),
        "SEALWARD_KEYS_VAULT_SHREDDER_ROLE_ID_FILE": str(login / "shredder-role-id"),
        "SEALWARD_KEYS_VAULT_SHREDDER_WRAPPED_SECRET_ID_FILE": str(
            login / "shredder-wrapped-secret-id"
        ),
    }
    assert "SEALWARD_KEYS_UNLOCK_FILE" not in environ
    for path in (suite.vault_file, *login.iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    for name in SERVICES:
        if name != "keys":
            assert not any("VAULT" in key for key in service_environ(suite, name, {}))


def test_addresses_may_change_and_a_new_login_replaces_the_old_one(
    suite: Suite, tmp_path: Path
) -> None:
    choose(suite, VaultChoice(URL, approle(tmp_path / "c")), {})
    choose(suite, VaultChoice("https://a:1,https://b:1"), {})
    environ = vault_environ(suite)
    assert environ["VAULT_ADDR"] == "https://a:1,https://b:1"
    assert environ["VAULT_PREFIX"] == "clinic"
    cert = credentials(tmp_path / "d", cert__pem="C", key__pem="K")
    choose(suite, VaultChoice(credentials=cert), {})
    environ = vault_environ(suite)
    assert environ["VAULT_CLIENT_CERT_FILE"] == str(suite.vault_login / "cert.pem")
    assert "VAULT_ROLE_ID_FILE" not in environ
    # The shredder's login may be brought while the suite runs.
    assert environ["VAULT_SHREDDER_ROLE_ID_FILE"] == str(suite.vault_login / "shredder-role-id")


def test_a_plain_secret_id_is_named_as_one(suite: Suite, tmp_path: Path) -> None:
    folder = credentials(tmp_path / "c", role_id="role", secret_id="secret")
    choose(suite, VaultChoice(URL, folder), {})
    environ = vault_environ(suite)
    assert environ["VAULT_SECRET_ID_FILE"] == str(suite.vault_login / "secret-id")
    assert "VAULT_WRAPPED_SECRET_ID_FILE" not in environ


def test_a_keystore_is_not_left_for_vault(suite: Suite, tmp_path: Path) -> None:
    suite.unlock_file.write_text("secret")
    with pytest.raises(CliError, match="cannot move to Vault") as caught:
        choose(suite, VaultChoice(URL, approle(tmp_path / "c")), {})
    assert caught.value.code is Exit.USAGE
    assert not suite.vault_file.exists()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (VaultChoice(URL), "no login"),
        (VaultChoice(namespace="team"), "where is Vault"),
        (VaultChoice(URL, Path("/nowhere")), "holds no login"),
        (VaultChoice(URL, ca_cert=Path("/nowhere/ca.pem")), "cannot be read"),
    ],
)
def test_what_is_missing_is_said(suite: Suite, choice: VaultChoice, said: str) -> None:
    with pytest.raises(CliError, match=said) as caught:
        choose(suite, choice, {})
    assert caught.value.code is Exit.USAGE
    assert not suite.vault_file.exists()


def test_the_operators_own_settings_are_enough(suite: Suite) -> None:
    environ = {
        "SEALWARD_KEYS_PROVIDER": "vault", "VAULT_ADDR": URL, "VAULT_TOKEN": "hvs.secret",
        "SEALWARD_KEYS_VAULT_ROLE_ID_FILE": "/s/role", "VAULT_CACERT": "/s/ca.pem",
        "SEALWARD_KEYS_VAULT_SECRET_ID_FILE": "/s/secret",
    }  # fmt: skip
    assert uses_vault(suite, environ)
    found = service_environ(suite, "keys", environ)
    assert found["VAULT_ADDR"] == URL
    assert found["VAULT_CACERT"] == "/s/ca.pem"
    assert "SEALWARD_KEYS_UNLOCK_FILE" not in found
    # The operator's own token is no business of a service.
    assert "hvs.secret" not in found.values()
    choose(suite, VaultChoice(URL), environ)
    assert vault_environ(suite)["PROVIDER"] == "vault"
