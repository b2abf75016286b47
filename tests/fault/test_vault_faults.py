"""A Vault that is sealed, killed, held still or withdraws the login.

Leased keys serve to their limit, then nothing does; when Vault is well again everything goes on
without anybody's help.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.cli.connect import is_serving
from sealward.kit.enroll import write_private
from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import KeyRing, KeysServiceSource
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from tests.support.keys_process import KeysProcess, on_vault, proto, reason_of, refusal_of
from tests.support.vault import VaultServer
from tests.support.waiting import free_port, until

# The first run builds the server.
pytestmark = pytest.mark.timeout(900)

SESSION = EncryptionContext("default", "session", "epoch-1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    started = VaultServer(tmp_path_factory.mktemp("vault"), storage="file").start()
    yield started
    started.stop()


class Outage:
    """A way in which Vault goes away, and how it comes back."""

    def __init__(self, name: str, trouble: str) -> None:
        self.name = name
        self.trouble = trouble

    def begin(self, server: VaultServer, keys: KeysProcess) -> None:
        if self.name == "sealed":
            server.seal()
        elif self.name == "killed":
            server.kill()
        elif self.name == "held":
            server.pause()
        else:
            _withdraw(server, keys)

    def end(self, server: VaultServer, keys: KeysProcess) -> None:
        if self.name == "sealed":
            server.unseal()
        elif self.name == "killed":
            server.start()
        elif self.name == "held":
            server.resume()
        else:
            prefix = keys.settings["VAULT_PREFIX"]
            made = server.ask("post", f"auth/{prefix}-approle/role/keys/secret-id", {})
            secret = made["data"]["secret_id"]
            write_private(keys.folder / "keys" / "vault" / "secret-id", secret.encode())


def _withdraw(server: VaultServer, keys: KeysProcess) -> None:
    """Take the secret id back, and every token of the login."""
    prefix = keys.settings["VAULT_PREFIX"]
    secret = (keys.folder / "keys" / "vault" / "secret-id").read_text().strip()
    path = f"auth/{prefix}-approle/role/keys/secret-id/destroy"
    server.ask("post", path, {"secret_id": secret})
    server.ask("post", f"sys/leases/revoke-prefix/auth/{prefix}-approle/login")


OUTAGES = [
    Outage("sealed", "vault-sealed"),
    Outage("killed", "vault-unreachable"),
    Outage("held", "vault-slow"),
    Outage("withdrawn", "vault-login-refused"),
]


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.name)
def test_leased_keys_serve_to_their_limit_and_it_recovers(
    outage: Outage, server: VaultServer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "LEASE_SOFT_SECONDS": 2, "LEASE_HARD_SECONDS": 8, "VAULT_TIMEOUT_SECONDS": 1,
    }  # fmt: skip
    with ExitStack() as stack:
        keys = on_vault(tmp_path, server, **options)
        stack.callback(keys.end)
        keys.start()
        channels = keys.channels("gateway")
        stub = KeysServiceStub(channels.get())
        admin = keys.stub("admin")
        told: list[bool] = []
        ring = KeyRing(KeysServiceSource(channels), on_ready=told.append)
        stack.callback(ring.close)
        branch = ring.create(SESSION)
        sealed = branch.seal(b"a session", "a" * 64)
        assert status(admin) == ("ready", "")

        outage.begin(server, keys)
        stack.callback(lambda: suppress_end(outage, server, keys))
        # What is leased is used; what would be new is refused, with a time to ask again.
        until(lambda: status(admin) == ("degraded", outage.trouble), "it is degraded")
        assert branch.open(sealed, "a" * 64) == b"a session"
        refused = (grpc.StatusCode.UNAVAILABLE, "KEYSTORE_UNAVAILABLE")
        create = keys_pb2.CreateBranchKeyRequest(context=proto(SESSION))
        unwrap = keys_pb2.OpenBranchKeyRequest(context=proto(SESSION), wrapped=branch.wrapped)
        for call in (lambda: stub.CreateBranchKey(create), lambda: stub.OpenBranchKey(unwrap)):
            *what, again = refusal_of(call)
            assert tuple(what) == refused
            assert again > 0
        assert not is_serving(channels.get())
        assert not is_serving(channels.get(), service="keystore")

        # Past the hard limit nothing opens any more, and nothing else is tried.
        until(lambda: not branch.live, "the lease runs out")
        with pytest.raises(SealwardError) as caught:
            branch.open(sealed, "a" * 64)
        assert caught.value.reason is Reason.KEYS_UNAVAILABLE
        until(lambda: status(admin)[0] == "sealed", "it is sealed")
        assert status(admin)[1] == outage.trouble
        assert not keys.keystore.exists()

        outage.end(server, keys)
        until(lambda: status(admin) == ("ready", ""), "it recovers")
        until(lambda: branch.live, "the key is renewed")
        assert branch.open(sealed, "a" * 64) == b"a session"
        until(lambda: is_serving(channels.get()), "it serves")
        until(lambda: told[-1:] == [True], "the holder is ready")
        assert False in told
        stub.CreateBranchKey(create)

        keys.end()
        records = [record for record in keys.events() if b"keys.provider" in record]
        assert any(outage.trouble.encode() in record for record in records)
        assert any(b"ready" in record for record in records)


def suppress_end(outage: Outage, server: VaultServer, keys: KeysProcess) -> None:
    """Bring Vault back for the next test, whatever has become of this one."""
    if server.status("get", "sys/health")[0] == 200:
        return
    with suppress(AssertionError):
        outage.end(server, keys)


def status(stub: KeysServiceStub) -> tuple[str, str]:
    found = stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=5)
    assert found.provider == "vault"
    return found.state, found.trouble


def test_a_vault_held_still_takes_no_thread_from_the_others(
    server: VaultServer, tmp_path: Path
) -> None:
    """While a crowd asks for keys, status, trust bundle and health are answered."""
    keys = on_vault(tmp_path, server, VAULT_TIMEOUT_SECONDS=3, WORKERS=24)
    try:
        keys.start()
        channel, admin = keys.channels("gateway").get(), keys.stub("admin")
        stub = KeysServiceStub(channel)
        create = keys_pb2.CreateBranchKeyRequest(context=proto(SESSION))
        stub.CreateBranchKey(create)
        server.pause()
        found: list[tuple[grpc.StatusCode, str]] = []
        crowd = [
            threading.Thread(
                target=lambda: found.append(reason_of(lambda: stub.CreateBranchKey(create)))
            )
            for _ in range(20)
        ]
        for thread in crowd:
            thread.start()
        # Three may wait for Vault and three for a place: the rest of the crowd is refused first.
        until(lambda: len(found) >= 14, "those without a place are refused")
        answered = 0
        while any(thread.is_alive() for thread in crowd):
            admin.GetStatus(keys_pb2.GetStatusRequest(), timeout=2)
            stub.GetTrustBundle(keys_pb2.GetTrustBundleRequest(), timeout=2)
            answered += 1
        assert answered > 0
        assert set(found) == {(grpc.StatusCode.UNAVAILABLE, "KEYSTORE_UNAVAILABLE")}
        server.resume()
        until(lambda: status(admin) == ("ready", ""), "it recovers")
        stub.CreateBranchKey(create)
    finally:
        server.resume()
        keys.end()


def test_certificates_wait_and_come(server: VaultServer, tmp_path: Path) -> None:
    keys = on_vault(tmp_path, server)
    try:
        keys.start()
        channels = keys.channels("audit")
        server.seal()
        stub = KeysServiceStub(channels.get())
        until(lambda: status(stub)[0] == "degraded", "it is degraded")
        waiting: list[object] = []
        thread = threading.Thread(target=lambda: waiting.append(keys.material("inference")))
        thread.start()
        until(lambda: keys.lines("enrolment.blocked") > 0, "the request waits")
        assert waiting == []
        server.unseal()
        thread.join()
        assert waiting
    finally:
        if server.status("get", "sys/health")[0] != 200:
            server.unseal()
        keys.end()


def test_it_ends_in_order_while_vault_is_away(server: VaultServer, tmp_path: Path) -> None:
    keys = on_vault(tmp_path, server, START_SECONDS=0.5).start()
    try:
        server.seal()
        until(lambda: keys.lines("provider.trouble") > 0, "it is noticed")
        assert keys.process is not None
        keys.end()
        assert keys.process.returncode == 0
        assert "Vault is sealed" in keys.refuses_to_start()
    finally:
        server.unseal()
    keys.start()
    keys.end()


def test_of_three_servers_the_next_one_leads(tmp_path: Path) -> None:
    """The active node is killed: calls are refused until another leads, then answered again."""
    nodes: list[VaultServer] = []
    try:
        leader = raft(tmp_path / "raft", 3, nodes)
        login = leader.set_up(tmp_path / "credentials")
        keys = on_vault(
            tmp_path, leader, login, VAULT_ADDR=",".join(node.address for node in nodes)
        )
        keys.start()
        try:
            stub, admin = keys.stub("gateway"), keys.stub("admin")
            create = keys_pb2.CreateBranchKeyRequest(context=proto(SESSION))
            made = stub.CreateBranchKey(create)
            until(lambda: voters(leader) == 3, "all of them vote", seconds=120)
            leader.kill()

            def opened() -> bool:
                request = keys_pb2.OpenBranchKeyRequest(
                    context=proto(SESSION), wrapped=made.wrapped
                )
                try:
                    return bool(stub.OpenBranchKey(request, timeout=10).key == made.key)
                except grpc.RpcError as error:
                    codes.add(error.code())
                    return False

            codes: set[grpc.StatusCode] = set()
            until(opened, "another node leads", seconds=120)
            assert codes == {grpc.StatusCode.UNAVAILABLE}
            until(lambda: status(admin) == ("ready", ""), "it is ready")
        finally:
            keys.end()
    finally:
        for node in nodes:
            node.kill()


def raft(folder: Path, count: int, nodes: list[VaultServer]) -> VaultServer:
    """Start a cluster; return the node that leads."""
    for number in range(count):
        cluster = f"127.0.0.1:{free_port()}"
        node = VaultServer(
            folder / str(number),
            storage="raft",
            arguments=("-cluster", cluster, "-node", f"n{number}"),
        )
        nodes.append(node)
        leader = nodes[0]
        if node is leader:
            node.start()
        else:
            node.token, node.unseal_key = leader.token, leader.unseal_key
            node.start(unseal=False)
            node.ask("post", "sys/storage/raft/join", {"leader_api_addr": leader.address})
            until(lambda node=node: unsealed(node), "it joins")  # type: ignore[misc]
    return nodes[0]


def unsealed(node: VaultServer) -> bool:
    node.status("put", "sys/unseal", {"key": node.unseal_key})
    return node.status("get", "sys/health")[0] in (200, 429)


def voters(leader: VaultServer) -> int:
    found = leader.ask("get", "sys/storage/raft/configuration")
    servers = found["data"]["config"]["servers"]
    return sum(bool(server["voter"]) for server in servers)


def test_nothing_of_a_key_is_in_what_vault_is_sent(server: VaultServer, tmp_path: Path) -> None:
    """Vault's own audit log shows contexts as digests: no tenant's resource in clear."""
    log = tmp_path / "audit.log"
    server.ask("put", "sys/audit/test", {
        "type": "file", "options": {"file_path": str(log), "log_raw": "true"},
    })  # fmt: skip
    keys = on_vault(tmp_path, server)
    try:
        keys.start()
        context = EncryptionContext("default", "session", "a-telling-resource")
        keys.stub("gateway").CreateBranchKey(
            keys_pb2.CreateBranchKeyRequest(context=proto(context))
        )
    finally:
        keys.end()
        server.ask("delete", "sys/audit/test")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("datakey" in line["request"]["path"] for line in lines)
    assert "a-telling-resource" not in log.read_text()
