"""A real keys process for tests, with either provider."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit.channel import Channels
from sealward.kit.enroll import enroll, write_private
from sealward.kit.tls import Credentials, Material
from sealward.seal.context import EncryptionContext
from sealward.seal.rootkey import new_identity
from tests.support.vault import Login, VaultServer, shared
from tests.support.waiting import free_port, until

TD = "sealward.local"


class KeysProcess:
    """The service in a folder, with the provider that the settings name."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.command = ["-m", "services.keys"]
        self.unlock = folder / "unlock"
        self.log = folder / "keys.log"
        if not self.unlock.exists():
            write_private(self.unlock, new_identity().encode())

    @property
    def enroll_dir(self) -> Path:
        return self.folder / "enroll"

    @property
    def keystore(self) -> Path:
        return self.folder / "keys" / "keystore"

    def launch(self) -> None:
        settings = {
            "ADDRESS": self.address,
            "METRICS_ADDRESS": "127.0.0.1:0",
            "DATA_DIR": self.folder / "keys",
            "ENROLL_DIR": self.enroll_dir,
            "TRUST_DOMAIN": TD,
            "AUDIT_ADDRESS": "127.0.0.1:9",
            "UNLOCK_FILE": self.unlock,
            "DRAIN_SECONDS": 1,
            **self.settings,
        }
        foreign = ("SEALWARD_", "VAULT_")
        environment = {n: v for n, v in os.environ.items() if not n.startswith(foreign)}
        environment |= {f"SEALWARD_KEYS_{name}": str(v) for name, v in settings.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> KeysProcess:
        before = self.lines("started")
        self.launch()
        assert self.process is not None
        process = self.process
        until(lambda: self.lines("started") > before or process.poll() is not None, "it starts")
        assert process.poll() is None, self.log.read_text()
        return self

    def lines(self, event: str) -> int:
        return self.log.read_text().count(f'"event": "{event}"') if self.log.exists() else 0

    def refuses_to_start(self) -> str:
        """Start, expect exit status 1, and return the one line on standard error."""
        self.log.unlink(missing_ok=True)
        self.launch()
        assert self.process is not None
        assert self.process.wait(30) == 1
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in self.log.read_text()
        return lines[0]

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def material(self, name: str) -> Material:
        return enroll(self.enroll_dir, name, 20.0)

    def channels(self, name: str) -> Channels:
        return Channels(Credentials(self.material(name)), self.address, f"keys.{TD}")

    def stub(self, name: str) -> KeysServiceStub:
        return KeysServiceStub(self.channels(name).get())

    def events(self) -> list[bytes]:
        """Records in the spool; the process must have ended."""
        with contextlib.closing(sqlite3.connect(self.folder / "keys" / "spool.sqlite")) as db:
            return [row[0] for row in db.execute("SELECT body FROM spans ORDER BY seq")]


def embedded(folder: Path, **settings: Any) -> KeysProcess:
    """A service with a keystore of its own."""
    return KeysProcess(folder, **settings)


def on_vault(
    folder: Path, server: VaultServer | None = None, login: Login | None = None, **settings: Any
) -> KeysProcess:
    """A service on a Vault: the shared one unless another is named, with a prefix of its own."""
    server = server or shared()
    login = login or server.set_up(folder / "credentials")
    return KeysProcess(folder, **{**settings_of(server, login), **settings})


def settings_of(server: VaultServer, login: Login) -> dict[str, Any]:
    """What tells a keys service about a Vault and its login to it."""
    ca = {"VAULT_CACERT": server.tls[2]} if server.tls else {}
    return {
        "PROVIDER": "vault",
        "UNLOCK_FILE": "",
        "VAULT_ADDR": server.address,
        "VAULT_PREFIX": login.prefix,
        "VAULT_ROLE_ID_FILE": login.folder / "role-id",
        "VAULT_WRAPPED_SECRET_ID_FILE": login.folder / "wrapped-secret-id",
        "VAULT_SHREDDER_ROLE_ID_FILE": login.folder / "shredder-role-id",
        "VAULT_SHREDDER_WRAPPED_SECRET_ID_FILE": login.folder / "shredder-wrapped-secret-id",
        **ca,
    }


def reason_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a call that has to be refused."""
    code, reason, _ = refusal_of(call)
    return code, reason


def refusal_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, float]:
    """As `reason_of`, with the seconds of RetryInfo, 0 when there is none."""
    try:
        call()
    except grpc.RpcError as caught:
        error: Any = caught
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        info, retry = ErrorInfo(), RetryInfo()
        for detail in Status.FromString(details).details:
            detail.Unpack(info)
            detail.Unpack(retry)
        return error.code(), info.reason, retry.retry_delay.ToMilliseconds() / 1000
    raise AssertionError("it was answered")


def proto(context: EncryptionContext) -> keys_pb2.EncryptionContext:
    return keys_pb2.EncryptionContext(
        tenant=context.tenant, purpose=context.purpose, resource=context.resource
    )
