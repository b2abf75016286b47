"""Real keys and audit processes over mTLS, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from sealward.cli.suite import free_ports
from sealward.kit.enroll import enroll, write_private
from sealward.kit.tls import Credentials
from sealward.seal.rootkey import new_identity

_START_SECONDS = 120.0


class Services:
    """Keys and audit. Both are ended with `end`, whatever happened."""

    def __init__(self, folder: Path, provider: Mapping[str, object] | None = None) -> None:
        """`provider`: settings of keys for another provider than the embedded keystore."""
        self.folder = folder
        write_private(folder / "unlock", new_identity().encode())
        self.keys_address, self.address, metrics = (f"127.0.0.1:{p}" for p in free_ports(3))
        self._settings: dict[str, dict[str, object]] = {
            "keys": {
                "ADDRESS": self.keys_address,
                "AUDIT_ADDRESS": self.address,
                "METRICS_ADDRESS": "127.0.0.1:0",
                **(provider or {"UNLOCK_FILE": folder / "unlock"}),
            },
            "audit": {
                "ADDRESS": self.address,
                "KEYS_ADDRESS": self.keys_address,
                "AUDIT_ADDRESS": "",
                "METRICS_ADDRESS": metrics,
                "START_SECONDS": 60,
            },
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def audit_pid(self) -> int:
        """The audit process."""
        return self._processes["audit"].pid

    @property
    def log_folder(self) -> Path:
        """The published log."""
        return self.folder / "audit" / "log"

    @property
    def vkey_file(self) -> Path:
        """Its verifier key."""
        return self.folder / "audit" / "log.vkey"

    def begin(self) -> None:
        """Start both and wait until audit has opened its log."""
        self.start("keys")
        self.start("audit")

    def start(self, name: str) -> float:
        """Start one; return seconds until it serves."""
        log = self.folder / f"{name}.log"
        before = log.read_bytes().count(b'"started"') if log.exists() else 0
        settings = {
            "DATA_DIR": self.folder / name,
            "ENROLL_DIR": self.folder / "enroll",
            **self._settings[name],
        }
        environment = {n: v for n, v in os.environ.items() if not n.startswith("SEALWARD_")}
        environment |= {f"SEALWARD_{name.upper()}_{k}": str(v) for k, v in settings.items()}
        began = time.perf_counter()
        with log.open("ab") as file:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}"], stdout=file, stderr=file,
                env=environment,
            )  # fmt: skip
        while log.read_bytes().count(b'"started"') == before:
            if self._processes[name].poll() is not None:
                raise SystemExit(f"{name} did not start: {log.read_text()[-2000:]}")
            if time.perf_counter() - began > _START_SECONDS:
                raise SystemExit(f"{name} did not start in time")
            time.sleep(0.02)
        return time.perf_counter() - began

    def stop(self, name: str) -> None:
        """Stop one."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.terminate()
            process.wait(60)

    def end(self) -> None:
        """Stop both."""
        for name in ("audit", "keys"):
            self.stop(name)

    def credentials(self, name: str) -> Credentials:
        """Return a certificate of one of our own services or of the administrator."""
        credentials = Credentials()
        credentials.install(enroll(self.folder / "enroll", name, 20))
        return credentials
