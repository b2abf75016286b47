"""A real PostgreSQL server for a test: its own cluster, a unix socket, `fsync=on`.

PostgreSQL refuses to run as root; a root test run starts it as the user that its package made.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

_OWNER = "postgres"
SMALL_BYTES = 12 << 20
# What a server says that comes before the last process of a killed one has gone.
_HELD = "pre-existing shared memory block"


def binaries() -> Path:
    """Return the folder of the newest server on this machine; skip the test without one."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).parent
    pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")


@dataclass
class Server:
    """One server. `folder` holds its data and its socket.

    `small` is a folder in which it alone sees a file system of a few MiB.
    """

    folder: Path
    bin: Path
    options: dict[str, str] = field(default_factory=dict)
    small: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, user: str = _OWNER, database: str = "postgres") -> str:
        port = self.options.get("port", "5432")
        return f"host={self.folder} port={port} user={user} dbname={database}"

    def run(self, *command: str) -> None:
        done = subprocess.run(
            [*_as_owner(), str(self.bin / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    def init(self) -> None:
        self.run("initdb", "-D", str(self.data), "-A", "trust", "-U", _OWNER, "-E", "UTF8",
                 "--no-locale", "--no-sync")  # fmt: skip

    def start(self) -> None:
        options = {"listen_addresses": "", "unix_socket_directories": str(self.folder),
                   "fsync": "on", "shared_buffers": "16MB", "max_connections": "40",
                   **self.options}  # fmt: skip
        flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + 60
        while not self._started(flags, deadline):
            time.sleep(0.05)

    def _started(self, flags: list[str], deadline: float) -> bool:
        """Start the process; False when those of one that was killed still hold its memory."""
        before = self._log().count(_HELD)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._mounted(), *_as_owner(), str(self.bin / "postgres"), "-D", str(self.data),
                 *flags],
                stdout=log,
                stderr=log,
                cwd="/",
            )  # fmt: skip
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self._log()
                if self.process.poll() is not None:
                    assert self._log().count(_HELD) > before, self._log()
                    return False
                time.sleep(0.05)
            else:
                return True

    def _log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    def _mounted(self) -> list[str]:
        if self.small is None:
            return []
        owner = self.small.stat()
        options = f"size={SMALL_BYTES},mode=700,uid={owner.st_uid},gid={owner.st_gid}"
        script = f'mount -t tmpfs -o {options} none {self.small} && exec "$@"'
        return ["unshare", "-m", "sh", "-c", script, "sh"]

    def sql(self, *statements: str) -> list[tuple[object, ...]]:
        """Run statements as the owner; return the rows of the last."""
        rows: list[tuple[object, ...]] = []
        with psycopg.connect(self.url(), autocommit=True) as db:
            for statement in statements:
                cursor = db.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is a fast stop; SIGQUIT and SIGKILL leave recovery to the next start."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def standby(self, folder: Path, name: str = "standby") -> Server:
        """Make a streaming replica of this server; it is not started."""
        self.run("pg_basebackup", "-d", self.url(), "-D", str(folder / "data"), "-c", "fast",
                 "--no-sync")  # fmt: skip
        (folder / "data/standby.signal").touch()
        _give(folder / "data/standby.signal")
        return Server(
            folder,
            self.bin,
            {
                **self.options,
                "primary_conninfo": f"host={self.folder} user={_OWNER} application_name={name}",
                "hot_standby": "on",
                "synchronous_standby_names": "",
            },
        )


@contextlib.contextmanager
def folders(count: int = 1) -> Iterator[list[Path]]:
    """Yield folders that the server's user may use, with names short enough for a socket."""
    made = [Path(tempfile.mkdtemp(prefix="swpg", dir="/tmp")) for _ in range(count)]
    for folder in made:
        _give(folder)
    try:
        yield made
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def needs_mounts() -> None:
    """Skip the test where no small file system can be mounted for one process."""
    probe = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs for the server")


@contextlib.contextmanager
def running(**options: str) -> Iterator[Server]:
    """Yield a new server, which is gone afterwards."""
    programs = binaries()
    with folders() as (folder,):
        server = Server(folder, programs, dict(options))
        server.init()
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _as_owner() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_OWNER}", f"--regid={_OWNER}", "--clear-groups"]


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        owner = pwd.getpwnam(_OWNER)
        os.chown(path, owner.pw_uid, owner.pw_gid)
