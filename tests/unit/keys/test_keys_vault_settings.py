"""Settings of the Vault provider: what is missing, contradictory or unsafe refuses the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealward.kit.errors import StartupError
from sealward.kit.settings import load
from sealward.seal.context import EncryptionContext
from services.keys.providers.vault.config import AppRole, ClientCertificate, read_addresses
from services.keys.providers.vault.names import (
    PKI_ROLES,
    Names,
    derivation_context,
    kek_name,
    read_kek_name,
)
from services.keys.settings import KeysSettings

ROLE = {"SEALWARD_KEYS_VAULT_ROLE_ID_FILE": "/s/role-id"}
SECRET = {"SEALWARD_KEYS_VAULT_SECRET_ID_FILE": "/s/secret-id"}
WRAPPED = {"SEALWARD_KEYS_VAULT_WRAPPED_SECRET_ID_FILE": "/s/wrapped"}
CERT = {
    "SEALWARD_KEYS_VAULT_CLIENT_CERT_FILE": "/s/cert.pem",
    "SEALWARD_KEYS_VAULT_CLIENT_KEY_FILE": "/s/key.pem",
}
VAULT = {"SEALWARD_KEYS_PROVIDER": "vault", "VAULT_ADDR": "https://vault.example:8200"}
SHREDDER = {"SEALWARD_KEYS_VAULT_SHREDDER_ROLE_ID_FILE": "/s/shredder-role-id"}


def loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str]
) -> KeysSettings:
    for name in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT"):
        monkeypatch.delenv(name, raising=False)
    given = {
        "SEALWARD_KEYS_DATA_DIR": str(tmp_path), "SEALWARD_KEYS_ENROLL_DIR": str(tmp_path),
        **environ,
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return load(KeysSettings, "keys")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (VAULT, "one login"),
        ({**VAULT, **ROLE, **SECRET, **CERT}, "one login"),
        ({**VAULT, **ROLE}, "needs one of"),
        ({**VAULT, **SECRET}, "needs one of"),
        ({**VAULT, **ROLE, **SECRET, **WRAPPED}, "needs one of"),
        ({**VAULT, "SEALWARD_KEYS_VAULT_CLIENT_CERT_FILE": "/s/cert.pem"}, "go together"),
        ({**VAULT, **ROLE, **SECRET, **SHREDDER}, "SHREDDER_SECRET_ID_FILE"),
        ({**ROLE, **SECRET, "SEALWARD_KEYS_PROVIDER": "vault"}, "names no Vault server"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_ADDR": "http://vault.example:8200"}, "loopback"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_ADDR": "https://a:1,http://b:1"}, "loopback"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_ADDR": "https://a:1,https://a:1"}, "each once"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_ADDR": "https://a:1/v1"}, "https://HOST"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_ADDR": "https://user:pw@a:1"}, "https://HOST"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_ADDR": "vault.example"}, "https://HOST"),
        ({**VAULT, **CERT, "VAULT_ADDR": "http://127.0.0.1:1"}, "needs https"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_TOKEN": "hvs.x"}, "VAULT_TOKEN"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_SKIP_VERIFY": "true"}, "VAULT_SKIP_VERIFY"),
        ({**VAULT, **ROLE, **SECRET, "SEALWARD_KEYS_UNLOCK_FILE": "/s/unlock"}, "UNLOCK_FILE"),
        ({**VAULT, **ROLE, **SECRET, "SEALWARD_KEYS_VAULT_PREFIX": "Up/.."}, "VAULT_PREFIX"),
        ({**VAULT, **ROLE, **SECRET, "SEALWARD_KEYS_VAULT_TOKEN_FILE": "x"}, "unknown setting"),
        ({**VAULT, **ROLE, **SECRET, "VAULT_NAMESPACE": "a\nX-Vault-Token: b"}, "NAMESPACE"),
        ({**ROLE, **SECRET}, "PROVIDER is not"),
        ({"SEALWARD_KEYS_PROVIDER": "hsm"}, "PROVIDER"),
    ],
)
def test_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(StartupError) as caught:
        loaded(monkeypatch, tmp_path, environ)
    assert said in str(caught.value)
    assert "hvs.x" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_in_the_environment_alone_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Many environments have one; the token beside it is no business of the embedded provider."""
    environ = {"VAULT_ADDR": "http://elsewhere", "VAULT_TOKEN": "x", "VAULT_SKIP_VERIFY": "1"}
    assert loaded(monkeypatch, tmp_path, environ).provider == "embedded"


def test_what_is_set_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = loaded(
        monkeypatch,
        tmp_path,
        {
            **VAULT, **ROLE, **WRAPPED, **SHREDDER,
            "SEALWARD_KEYS_VAULT_SHREDDER_SECRET_ID_FILE": "/s/shredder-secret-id",
            "VAULT_ADDR": "https://a:8200, https://b:8200/", "VAULT_NAMESPACE": "team/clinic",
            "VAULT_CACERT": "/s/ca.pem", "SEALWARD_KEYS_VAULT_PREFIX": "team/sealward",
            "SEALWARD_KEYS_WORKERS": "16",
        },
    )  # fmt: skip
    found = settings.vault()
    assert found.target.addresses == ("https://a:8200", "https://b:8200")
    assert (found.target.namespace, found.target.ca_file) == ("team/clinic", Path("/s/ca.pem"))
    # A Vault that hangs may hold an eighth of the threads, and as many may wait.
    assert found.target.calls == 2
    assert found.names == Names("team/sealward")
    kept = tmp_path / "vault" / "secret-id"
    assert found.login == AppRole(Path("/s/role-id"), None, Path("/s/wrapped"), kept)
    assert found.shredder == AppRole(
        Path("/s/shredder-role-id"), Path("/s/shredder-secret-id"), None, None
    )
    assert not found.target.single_host


def test_our_own_address_goes_before_the_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = loaded(
        monkeypatch, tmp_path, {**VAULT, **CERT, "SEALWARD_KEYS_VAULT_ADDR": "https://ours:1"}
    )
    found = settings.vault()
    assert found.target.addresses == ("https://ours:1",)
    assert found.login == ClientCertificate(Path("/s/cert.pem"), Path("/s/key.pem"))
    assert found.target.certificate == found.login


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"])
def test_plain_http_on_this_machine(address: str) -> None:
    assert read_addresses(address) == (address,)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1.evil.test", "http://localhost.evil.test", "http://0.0.0.0:1"]
)
def test_what_only_looks_like_this_machine(address: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        read_addresses(address)


def test_names_of_keys_are_never_of_two_meanings() -> None:
    one, other = kek_name("a-b", "c"), kek_name("a", "b-c")
    assert one != other
    assert read_kek_name(one) == ("a-b", "c")
    assert read_kek_name(other) == ("a", "b-c")
    for name in ("canary", "kek-", "kek-a", "kek-A.b", "other"):
        assert read_kek_name(name) is None


def test_names_stand_below_the_prefix() -> None:
    names = Names("team/sealward")
    assert names.key("kek-a.b") == "team/sealward/transit/keys/kek-a.b"
    assert names.approle == "auth/team/sealward-approle"
    assert names.policy("keys") == "team-sealward-keys"
    assert set(PKI_ROLES) >= {"service-gateway", "admin-local", "user", "workload"}


def test_the_context_is_bound_whole() -> None:
    """The canonical form is fixed: another one would open nothing that was sealed before."""
    context = EncryptionContext("default", "session", "epoch-1")
    assert derivation_context(context) == derivation_context(context)
    others = {
        derivation_context(other)
        for other in (
            EncryptionContext("default", "session", "epoch-2"),
            EncryptionContext("default", "s", "ession-epoch-1"),
            EncryptionContext("other", "session", "epoch-1"),
        )
    }
    assert len(others) == 3
    assert derivation_context(context) == "O9DcEqR2QbHk2eNLZifdUqospwc5UfPeCOwaUdrfCL8="
