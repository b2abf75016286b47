"""A real Vault beside the keys service: what a direct call costs, and how many calls it gets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hvac
import trustme

from benchmarks.gobuild import build
from sealward.seal.context import EncryptionContext
from services.keys.providers.vault.names import Names, derivation_context, kek_name
from tests.support.vault import SOURCE, Login, VaultServer

# The server of the tests is built without optimisation, which would flatter us here.
_FLAGS = ("-mod=readonly", "-trimpath", "-ldflags=-s -w")


@dataclass(frozen=True)
class Vault:
    """A server with TLS, set up for a deployment."""

    server: VaultServer
    login: Login

    def settings(self) -> Mapping[str, object]:
        """What a keys service needs to use it."""
        assert self.server.tls is not None
        return {
            "PROVIDER": "vault",
            "VAULT_ADDR": self.server.address,
            "VAULT_CACERT": self.server.tls[2],
            "VAULT_PREFIX": self.login.prefix,
            "VAULT_ROLE_ID_FILE": self.login.folder / "role-id",
            "VAULT_WRAPPED_SECRET_ID_FILE": self.login.folder / "wrapped-secret-id",
        }

    def data_key(self, context: EncryptionContext) -> Callable[[], object]:
        """Return a direct call: a data key by hvac, under the policy of the keys service.

        The same key-encryption key, over the same TLS, in a session that is kept.
        """
        assert self.server.tls is not None
        policy = {"policies": [f"{self.login.prefix}-keys"]}
        made = self.server.ask("post", "auth/token/create", policy)
        client = hvac.Client(
            url=self.server.address,
            token=made["auth"]["client_token"],
            verify=str(self.server.tls[2]),
        )
        name = kek_name(context.tenant, context.purpose)
        mount = Names(self.login.prefix).transit
        derived = derivation_context(context)
        return lambda: client.secrets.transit.generate_data_key(
            name, "plaintext", context=derived, mount_point=mount
        )

    def counted(self, work: Callable[[], object]) -> int:
        """Return how many calls reached Vault while `work` ran, by Vault's own audit device.

        One more is made to see that it counts.
        """
        log = self.server.folder / "audit.log"
        device = {"type": "file", "options": {"file_path": str(log)}}
        self.server.ask("put", "sys/audit/benchmark", device)
        before = _requests(log)
        work()
        after = _requests(log)
        self.server.ask("get", "sys/mounts")
        if _requests(log) != after + 1:
            raise SystemExit("Vault's audit device does not count")
        self.server.ask("delete", "sys/audit/benchmark")
        return after - before


def _requests(log: Path) -> int:
    # The service's own probes of Vault's health are no calls that are recorded.
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(json.loads(line)["type"] == "request" for line in lines)


@contextmanager
def vault(folder: Path) -> Iterator[Vault | None]:
    """Start one, and end it; None where there is neither Go nor a binary that was built before."""
    program = build(SOURCE, "vault-optimised", *_FLAGS)
    if program is None:
        yield None
        return
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    files = (folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    files[0].write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    files[1].touch(mode=0o600)
    files[1].write_bytes(leaf.private_key_pem.bytes())
    files[2].write_bytes(authority.cert_pem.bytes())
    # What the user's environment says of another Vault is not meant.
    for name in [name for name in os.environ if name.startswith("VAULT_")]:
        del os.environ[name]
    server = VaultServer(folder / "server", tls=files, program=program)
    try:
        server.start()
        yield Vault(server, server.set_up(folder / "login"))
    finally:
        server.kill()
