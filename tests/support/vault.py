"""A real Vault server for tests: built once, run on loopback, one for each test that breaks it.

`VAULT_BIN` names another binary, `VAULT_ADDR` with `VAULT_TOKEN` another server; those are for what
every Vault can do. What stops, seals and cuts off uses a server of its own.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gobuild import build
from tests.support.waiting import free_port, until

SOURCE = Path(__file__).parent.parent / "vault"
MISSING = "Go is not installed: no real Vault server has been tried (https://go.dev/dl)"
# Not optimised: built in half the time.
_FLAGS = ("-mod=readonly", "-trimpath", "-gcflags=all=-N -l", "-ldflags=-s -w")


def binary() -> Path | None:
    """Return the server that is built from `tests/vault`; None where there is no Go."""
    return build(SOURCE, "vault", *_FLAGS)


def required_binary() -> Path:
    """As `binary`; skip the test, loudly, where there is none."""
    import pytest

    try:
        found = binary()
    except subprocess.CalledProcessError:
        pytest.skip("Vault cannot be built: no real Vault server has been tried (no module proxy?)")
    if found is None:
        pytest.skip(MISSING)
    return found


@dataclass(frozen=True)
class Login:
    """What `sealward vault setup` handed out."""

    folder: Path
    prefix: str

    def text(self, name: str) -> str:
        return (self.folder / name).read_text().strip()


@dataclass
class VaultServer:
    """A server and its administrator's token. `folder` is for its storage and its log.

    `tls`: certificate and key of the listener, and the CA to verify it with.
    """

    folder: Path
    address: str = ""
    token: str = ""
    tls: tuple[Path, Path, Path] | None = None
    storage: str = "inmem"
    program: Path | None = None
    arguments: tuple[str, ...] = ()
    unseal_key: str = ""
    process: subprocess.Popen[bytes] | None = None
    prefixes: list[str] = field(default_factory=list)

    # --- the process -------------------------------------------------------------------------

    def start(self, *, unseal: bool = True) -> VaultServer:
        """Start it (again, at the same address); initialise it the first time."""
        if not self.address:
            scheme = "https" if self.tls else "http"
            self.address = f"{scheme}://127.0.0.1:{free_port()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        program = self.program or required_binary()
        argv = [str(program), "-listen", self.address.partition("://")[2],
                "-storage", self.storage, "-path", str(self.folder / "storage"),
                *self.arguments]  # fmt: skip
        (self.folder / "storage").mkdir(exist_ok=True)
        if self.tls:
            argv += ["-tls-cert", str(self.tls[0]), "-tls-key", str(self.tls[1])]
        with (self.folder / "vault.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self.listens, "Vault listens")
        if not self.unseal_key:
            made = self.ask("put", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.token, self.unseal_key = made["root_token"], made["keys_base64"][0]
        if unseal:
            self.unseal()
        return self

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "vault.log").read_text()
        return self.status("get", "sys/health")[0] != 0

    def unseal(self) -> None:
        self.ask("put", "sys/unseal", {"key": self.unseal_key})
        until(lambda: self.status("get", "sys/health")[0] == 200, "Vault is active")

    def seal(self) -> None:
        self.ask("put", "sys/seal")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Hold it still: it takes connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(30)

    # --- the API, by an administrator --------------------------------------------------------

    def status(
        self, method: str, path: str, body: Any = None, token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:  # fmt: skip
        """Ask; return status (0 = no answer) and body."""
        request = urllib.request.Request(  # noqa: S310 - a server of the test's own
            f"{self.address}/v1/{path}",
            method="GET" if method == "list" else method.upper(),
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.token if token is None else token, **(headers or {})},
        )
        if method == "list":
            request.full_url += "?list=true"
        context = ssl.create_default_context(cafile=str(self.tls[2])) if self.tls else None
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:  # noqa: S310
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json(error.read())
        except OSError:
            return 0, {}

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Ask; the answer must be good."""
        code, found = self.status(method, path, body, token)
        assert 200 <= code < 300, (method, path, code, found)
        return found

    def set_up(self, folder: Path, *arguments: str, prefix: str = "", code: int = 0) -> Login:
        """Run the real setup, with a prefix of its own."""
        prefix = prefix or f"test-{secrets.token_hex(4)}"
        self.prefixes.append(prefix)
        self.sealward("setup", folder, "--prefix", prefix, *arguments, code=code)
        return Login(folder, prefix)

    def sealward(self, verb: str, out: Path, *arguments: str, code: int = 0) -> Any:
        """Run a verb of `sealward vault` with the administrator's token."""
        self.folder.mkdir(parents=True, exist_ok=True)
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(self.token)
        ca = ("--ca-cert", str(self.tls[2])) if self.tls else ()
        done = subprocess.run(
            [sys.executable, "-m", "sealward.cli.main", "vault", verb, "--addr", self.address,
             "--token-file", str(token), "--out", str(out), *ca, *arguments, "--json"],
            capture_output=True, text=True, check=False, timeout=60,
            env={name: v for name, v in os.environ.items() if not name.startswith("VAULT_")},
        )  # fmt: skip
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    def forget(self) -> None:
        """Remove what the tests made, from a server that goes on."""
        for prefix in self.prefixes:
            for path in (f"mounts/{prefix}/transit", f"mounts/{prefix}/pki",
                         f"auth/{prefix}-approle", f"auth/{prefix}-cert"):  # fmt: skip
                self.status("delete", f"sys/{path}")
            for name in ("keys", "shredder", "auditor", "admin"):
                self.status("delete", f"sys/policies/acl/{prefix}-{name}")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data or b"{}")
    except ValueError:
        return {"text": data[:200]}


@functools.cache
def shared() -> VaultServer:
    """The server that tests share which leave it as it is; ended with the test run."""
    folder = Path(tempfile.mkdtemp(prefix="sealward-vault-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.environ.get("VAULT_ADDR") and os.environ.get("VAULT_TOKEN"):
        server = VaultServer(folder, os.environ["VAULT_ADDR"], os.environ["VAULT_TOKEN"])
        atexit.register(server.forget)
        return server
    if os.environ.get("VAULT_BIN"):
        server = _foreign(folder, os.environ["VAULT_BIN"])
    else:
        server = VaultServer(folder).start()
    atexit.register(server.kill)
    return server


def _foreign(folder: Path, program: str) -> VaultServer:
    """Start a server of the user's own in its development mode."""
    server = VaultServer(folder, f"http://127.0.0.1:{free_port()}", secrets.token_hex(16))
    where = re.sub(r"^http://", "", server.address)
    with (folder / "vault.log").open("ab") as log:
        server.process = subprocess.Popen(
            [program, "server", "-dev", "-dev-no-store-token", f"-dev-listen-address={where}",
             f"-dev-root-token-id={server.token}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    until(lambda: server.status("get", "sys/health")[0] == 200, "Vault is ready")
    return server
