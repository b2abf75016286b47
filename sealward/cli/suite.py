"""The folder of a suite: its files, its addresses, and whether it runs.

Everything under the folder is closed to other accounts (folders 0700, files 0600). Imports the
standard library only, so that the supervisor stays small.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealward.cli.errors import CliError, Exit, unavailable, usage

SERVICES = ("keys", "audit", "inference", "gateway")
"""The services, in the order of their needs."""

DEFAULT_DIR = Path("sealward-data")

_PORTS_FROM = 18000
_FALLBACK_EPHEMERAL = 32768


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600 so that a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def private_folder(path: Path) -> Path:
    """Make a folder with mode 0700, or check that an existing one is ours and closed to others."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise usage(f"{path} cannot be made: {error.strerror}", "choose another --dir") from None
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise usage(f"{path} belongs to another account", "run as the account that owns it")
    if found.st_mode & 0o077:
        raise usage(f"{path} is open to other accounts", f"chmod 700 {path}")
    return path


@dataclass(frozen=True, slots=True)
class Suite:
    """Paths and state of the suite in one folder."""

    root: Path

    @classmethod
    def at(cls, folder: Path) -> Suite:
        """Return the suite of a folder, which need not exist yet."""
        return cls(folder.expanduser().absolute())

    @property
    def endpoints_file(self) -> Path:
        """Addresses, read by scripts."""
        return self.root / "endpoints.json"

    @property
    def run(self) -> Path:
        """Sockets, locks and state of the running processes."""
        return self.root / "run"

    @property
    def enroll_dir(self) -> Path:
        """Folder of local enrolment."""
        return self.run / "enroll"

    @property
    def bundle_file(self) -> Path:
        """The certificates to trust, as the keys service has them."""
        return self.enroll_dir / "ca.pem"

    @property
    def socket(self) -> Path:
        """The socket of the embedded Valkey."""
        return self.run / "valkey.sock"

    @property
    def secrets(self) -> Path:
        """The unlock secret and the first administrator's one-time password."""
        return self.root / "secrets"

    @property
    def unlock_file(self) -> Path:
        """What opens the keystore."""
        return self.secrets / "unlock"

    @property
    def vault_file(self) -> Path:
        """Where Vault is, for a suite whose keys are there."""
        return self.root / "vault.json"

    @property
    def vault_login(self) -> Path:
        """The keys service's login to Vault."""
        return self.secrets / "vault"

    @property
    def store_file(self) -> Path:
        """Where the session store is, for a suite that has no embedded one."""
        return self.root / "redis.json"

    @property
    def admin_password_file(self) -> Path:
        """The first administrator's one-time password, until it is used."""
        return self.secrets / "admin-password"

    @property
    def admin(self) -> Path:
        """Certificate of the local administrator."""
        return self.root / "admin"

    @property
    def clients(self) -> Path:
        """One folder per user."""
        return self.root / "clients"

    @property
    def logs(self) -> Path:
        """One file of JSON lines per process."""
        return self.root / "logs"

    @property
    def log_dir(self) -> Path:
        """The audit log."""
        return self.root / "audit" / "log"

    @property
    def vkey_file(self) -> Path:
        """The audit log's verifier key."""
        return self.root / "audit" / "log.vkey"

    @property
    def policy_file(self) -> Path:
        """The audit log's witness policy."""
        return self.root / "audit" / "log.policy"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor for as long as it lives; holds its process id."""
        return self.run / "supervisor.lock"

    @property
    def state_file(self) -> Path:
        """What the supervisor says about its children."""
        return self.run / "state.json"

    @property
    def renewal_file(self) -> Path:
        """When (seconds since the epoch) the next certificate is to be renewed."""
        return self.run / "renewal"

    def create(self, environ: Mapping[str, str]) -> None:
        """Make what is missing: folders, addresses. Raise CliError when the folder is not ours."""
        root = self.root
        if root.exists():
            if not root.is_dir():
                raise usage(f"{root} is not a folder", "choose another --dir")
            if not any(root.iterdir()):
                root.chmod(0o700)
            elif not self.endpoints_file.exists() and not self.run.is_dir():
                raise usage(
                    f"{root} holds other files and no Sealward suite", "choose an empty --dir"
                )
        for folder in (
            root, self.run, self.enroll_dir, self.secrets, self.admin, self.clients, self.logs,
            *(root / name for name in SERVICES),
        ):  # fmt: skip
            private_folder(folder)
        endpoints = self._endpoints() or self._new_endpoints()
        for name in SERVICES:
            for kind in ("address", "metrics"):
                setting = f"SEALWARD_{name.upper()}_{_SETTING[kind]}"
                if environ.get(setting):
                    endpoints[name][kind] = environ[setting]
        write_private(self.endpoints_file, _dump(endpoints))

    def endpoints(self) -> dict[str, dict[str, str]]:
        """Return the content of endpoints.json; raise CliError when there is no suite here."""
        found = self._endpoints()
        if found is None:
            raise unavailable(
                f"there is no suite in {self.root}",
                "start one with `sealward up`, or name its folder with --dir",
            )
        return found

    def address(self, service: str) -> str:
        """Return host:port of a service."""
        return self.endpoints()[service]["address"]

    def supervisor_pid(self) -> int | None:
        """Return the process id of the running supervisor, None when none runs.

        The kernel answers, from the lock: a file that a crash left behind is not locked.
        """
        try:
            with self.lock_file.open("rb") as file:
                asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, *_, pid = struct.unpack(
                    _FLOCK, fcntl.fcntl(file.fileno(), fcntl.F_GETLK, asked)
                )
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if kind == fcntl.F_UNLCK else int(pid)

    def require_running(self) -> None:
        """Raise CliError unless the suite runs."""
        self.endpoints()
        if self.supervisor_pid() is None:
            raise unavailable(
                f"the suite in {self.root} is not running", f"sealward up --dir {self.root}"
            )

    def state(self) -> dict[str, Any]:
        """Return what the supervisor last wrote about its children; empty when nothing."""
        try:
            found: dict[str, Any] = json.loads(self.state_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _endpoints(self) -> dict[str, dict[str, str]] | None:
        try:
            found: dict[str, dict[str, str]] = json.loads(self.endpoints_file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError):
            raise CliError(
                f"{self.endpoints_file} cannot be read",
                advice="restore it, or remove it to have new addresses chosen",
            ) from None
        if any(name not in found or "address" not in found[name] for name in SERVICES):
            raise CliError(
                f"{self.endpoints_file} does not name every service",
                advice="restore it, or remove it to have new addresses chosen",
            )
        return found

    def _new_endpoints(self) -> dict[str, dict[str, str]]:
        ports = free_ports(2 * len(SERVICES))
        endpoints = {
            name: {
                "address": f"127.0.0.1:{ports[2 * at]}",
                "metrics": f"127.0.0.1:{ports[2 * at + 1]}",
            }
            for at, name in enumerate(reversed(SERVICES))
        }
        endpoints["audit"] |= {"log": "audit/log", "vkey": "audit/log.vkey"}
        return endpoints


# struct flock (fcntl(2)): l_type, l_whence, l_start, l_len, l_pid, padded to its alignment.
_FLOCK = "hhlli0l"

_SETTING = {"address": "ADDRESS", "metrics": "METRICS_ADDRESS"}


def _dump(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def free_ports(count: int) -> list[int]:
    """Choose loopback ports that nobody uses now, outside the range of outgoing connections.

    A port of that range could be taken by any outgoing connection while the suite is down, and the
    suite comes back on the addresses that its callers know.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        low = int(text.split()[0])
    except (OSError, ValueError, IndexError):
        low = _FALLBACK_EPHEMERAL
    first, last = (_PORTS_FROM, low) if low - _PORTS_FROM > 1000 else (low, 65535)
    chosen: list[int] = []
    for port in random.SystemRandom().sample(range(first, last), min(500, last - first)):
        if port_is_free(port):
            chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise CliError("no free loopback ports", code=Exit.UNAVAILABLE)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True when nobody listens on this port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        # Without this a port with connections that linger in TIME_WAIT counts as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True
