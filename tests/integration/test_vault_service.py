"""A real keys process on a real Vault: what refuses its start, and what it tells of itself."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sealward.api.keys.v1 import keys_pb2
from sealward.seal.context import EncryptionContext
from tests.support.keys_process import KeysProcess, embedded, on_vault, proto, settings_of
from tests.support.vault import VaultServer, shared

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)

SESSION = EncryptionContext("default", "session", "epoch-1")

Make = Callable[..., KeysProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[KeysProcess] = []

    def maker(kind: Callable[..., KeysProcess] = on_vault, **options: Any) -> KeysProcess:
        made.append(kind(options.pop("folder", tmp_path), **options))
        return made[-1]

    yield maker
    for process in made:
        process.end()


def test_a_folder_keeps_its_provider_and_its_vault(make: Make, tmp_path: Path) -> None:
    keys = make().start()
    made = keys.stub("gateway").CreateBranchKey(
        keys_pb2.CreateBranchKeyRequest(context=proto(SESSION))
    )
    keys.end()

    # Its own keystore instead.
    ours, keys.settings = keys.settings, {}
    assert "began with Vault and cannot go on" in keys.refuses_to_start()
    assert not keys.keystore.exists()

    # Another trust domain.
    keys.settings = {**ours, "TRUST_DOMAIN": "other.local"}
    assert "another trust domain" in keys.refuses_to_start()

    # Another Vault, or other engines below another prefix.
    other = shared().set_up(tmp_path / "other")
    keys.settings = settings_of(shared(), other)
    assert "does not hold the keys of this folder" in keys.refuses_to_start()
    shared().sealward("secret-id", tmp_path / "credentials", "--prefix", ours["VAULT_PREFIX"])

    # With what it began with, what it wrapped still opens.
    keys.settings = ours
    keys.start()
    opened = keys.stub("gateway").OpenBranchKey(
        keys_pb2.OpenBranchKeyRequest(context=proto(SESSION), wrapped=made.wrapped)
    )
    assert opened.key == made.key

    # A damaged marker is not guessed at.
    keys.end()
    marker = keys.folder / "keys" / "provider.json"
    marker.write_bytes(marker.read_bytes()[:-20])
    assert "is damaged" in keys.refuses_to_start()


def test_a_keystore_does_not_become_vaults(make: Make) -> None:
    keys = make(embedded).start()
    keys.end()
    keys.settings = settings_of(shared(), shared().set_up(keys.folder / "credentials"))
    assert "began with the embedded keystore" in keys.refuses_to_start()
    keys.settings = {}
    keys.start()


def test_another_folder_on_the_same_keys_is_refused(make: Make, tmp_path: Path) -> None:
    keys = make().start()
    login = shared().sealward(
        "secret-id", tmp_path / "credentials", "--prefix", keys.settings["VAULT_PREFIX"]
    )
    assert login["role_id"]
    (tmp_path / "second").mkdir()
    second = make(
        lambda folder, **options: KeysProcess(folder, **{**keys.settings, **options}),
        folder=tmp_path / "second",
    )
    line = second.refuses_to_start()
    assert "holds keys of another folder" in line
    assert "--prefix" in line


def test_a_second_process_on_the_same_folder_is_refused(make: Make) -> None:
    keys = make().start()
    beside = KeysProcess(keys.folder, **keys.settings)
    beside.log = keys.folder / "beside.log"
    assert "in use by another process" in beside.refuses_to_start()


def test_a_start_that_cannot_be_says_why(make: Make, tmp_path: Path) -> None:
    keys = make()
    good = dict(keys.settings)
    for changes, said in (
        ({"VAULT_ADDR": "http://127.0.0.1:9"}, "Vault cannot be reached (http://127.0.0.1:9)"),
        ({"VAULT_PREFIX": "nothing/here"}, "was not made for this service"),
        ({"VAULT_ROLE_ID_FILE": tmp_path / "none"}, "none does not exist"),
        ({"START_SECONDS": 0.5, "VAULT_ADDR": "http://127.0.0.1:9"}, "cannot be reached"),
    ):
        keys.settings = {**good, **changes}
        assert said in keys.refuses_to_start()
    keys.settings = good
    keys.start()


def test_a_sealed_vault_is_waited_for_and_then_named(make: Make, tmp_path: Path) -> None:
    server = VaultServer(tmp_path / "vault", storage="file").start()
    try:
        keys = make(server=server, START_SECONDS=0.5)
        server.seal()
        assert "Vault is sealed" in keys.refuses_to_start()
        server.unseal()
        keys.start()
    finally:
        server.stop()


def test_metrics_say_how_it_is_and_no_secret_is_anywhere(make: Make) -> None:
    keys = make().start()
    made = keys.stub("gateway").CreateBranchKey(
        keys_pb2.CreateBranchKeyRequest(context=proto(SESSION))
    )
    text = metrics(keys)
    assert 'sealward_keys_provider_state{provider="vault",state="ready"} 1.0' in text
    assert 'sealward_keys_provider_state{provider="vault",state="sealed"} 0.0' in text
    assert 'sealward_keys_vault_trouble{trouble="vault-sealed"} 0.0' in text
    assert 'sealward_keys_vault_calls_total{operation="datakey",outcome="ok"}' in text
    assert "sealward_keys_vault_logins 1.0" in text
    assert keys.process is not None
    environment = Path(f"/proc/{keys.process.pid}/cmdline").read_bytes()
    secret_id = (keys.folder / "keys" / "vault" / "secret-id").read_bytes().strip()
    keys.end()
    for path in keys.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert made.key not in content
            assert b"hvs." not in content, path
            assert path.name == "secret-id" or secret_id not in content, path
    assert secret_id not in environment + text.encode()


def metrics(keys: KeysProcess) -> str:
    """What Prometheus would read, with a certificate."""
    import json

    started = next(
        json.loads(line)
        for line in keys.log.read_text().splitlines()
        if '"event": "started"' in line
    )
    from sealward.kit.tls import Credentials

    context = Credentials(keys.material("admin")).ssl_context(ssl.Purpose.SERVER_AUTH)
    context.check_hostname = False
    url = f"https://{started['metrics']}/metrics"
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:
        return str(answer.read().decode())
