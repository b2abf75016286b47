"""The documented way back for keys in Vault: a raft snapshot, onto a server that has nothing."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import pytest

from sealward.cli.errors import CliError
from tests.support.suites import RunningSuite, running, until
from tests.support.vault import VaultServer
from tests.support.waiting import free_port

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)
SNAPSHOT = "sys/storage/raft/snapshot"


def raft(server: VaultServer, method: str, path: str, body: bytes | None = None) -> bytes:
    """Snapshots are not JSON."""
    request = urllib.request.Request(  # noqa: S310 - a server of the test's own
        f"{server.address}/v1/{path}",
        method=method,
        data=body,
        headers={"X-Vault-Token": server.token},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        data: bytes = answer.read()
    return data


def test_a_vault_that_is_lost_is_had_back_from_its_snapshot(tmp_path: Path) -> None:
    cluster = ("-cluster", f"127.0.0.1:{free_port()}")
    server = VaultServer(tmp_path / "vault", storage="raft", arguments=cluster).start()
    try:
        with running(tmp_path / "data", provider="vault", vault=server) as suite:
            name = suite.user("ada")
            before = suite.ask(name)
            assert (
                "Vault"
                in suite.sealward("keys", "backup", "--to", str(tmp_path / "b"), code=1)["error"][
                    "message"
                ]
            )
            assert not (tmp_path / "b").exists()
            snapshot = raft(server, "GET", SNAPSHOT)
            old = (server.unseal_key, server.token)

            # The machine is gone. Another one, initialised anew, has other unseal keys and no data.
            server.kill()
            shutil.rmtree(tmp_path / "vault" / "storage")
            server.unseal_key = ""
            server.start()
            refused_by_an_empty_vault(suite, name)
            raft(server, "POST", f"{SNAPSHOT}-force", snapshot)
            # From here on it is unsealed with the keys of the snapshot's own time.
            server.unseal_key, server.token = old
            until(
                lambda: server.status("get", "sys/seal-status")[1].get("sealed") is True, "sealed"
            )
            server.unseal()
            until(lambda: suite.sealward_any("keys", "status") == 0, "keys recovers by itself")
            suite.answers_again(name)
            assert suite.event(before.proof.event_id)["actor"] == name
            # And a start finds the keys of its folder: the canary in provider.json opens.
            suite.down()
            suite.up()
            suite.ask(name)
    finally:
        server.kill()


def refused_by_an_empty_vault(suite: RunningSuite, name: str) -> None:
    """Nothing is made anew in a Vault that does not have our keys."""

    def in_trouble() -> bool:
        return suite.sealward_any("keys", "status") != 0

    until(in_trouble, "keys says that it is not ready")
    with pytest.raises((CliError, AssertionError)):
        suite.sealward("certs", "rotate", "--user", name)
