"""Connections to the PostgreSQL database of the production store.

Where the database is, and the password, stand in one file in libpq's own words (a URI or
`keyword=value` pairs), so that several hosts work as libpq documents them. What weakens the log is
refused here: a connection over the network is TLS 1.3 with the server's name verified, and a commit
is acknowledged only when it is on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sealward.kit.errors import StartupError
from services.audit.postgres_schema import check_server, prepare
from services.audit.store import StoreBrokenError, StoreError, StoreFullError

Parameters = Sequence[Any] | Mapping[str, Any]
T = TypeVar("T")

_READERS = 4
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
# Of the server: `search_path` finds the deployment's tables, and a client that is gone gives its
# lock back within seconds.
_SESSION = {
    "search_path": "{schema}",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read\\ committed",
    "statement_timeout": "0",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
# Of the client: a server that is gone is noticed within seconds, too.
_CLIENT = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "gssencmode": "disable",
    "application_name": "sealward-audit",
}
# SQLSTATEs after which the same statement may succeed on a new connection: connection exceptions,
# shutdown, crash and start of the server, a server that has become a standby, no memory, too many
# connections, cancelled, serialisation, deadlock.
_PASSING = (
    "08", "57P", "57014", "25006", "53200", "53300", "40",
)  # fmt: skip


class ConnectionLostError(StoreError):
    """The connection failed: what was under way may have happened or not."""


class Database:
    """One database and the schema of this deployment in it. Thread-safe.

    `patience` (seconds) bounds how long a failover is waited for. Reads come from a small pool.
    """

    def __init__(self, conninfo: str, schema: str, *, patience: float = 30.0) -> None:
        """Connect, and make the tables when they are missing; raise StartupError."""
        self.schema = schema
        self.patience = patience
        self._conninfo = _checked(conninfo, schema)
        try:
            with self._patiently(self.connect) as db:
                check_server(db)
                prepare(db, schema)
        except (psycopg.Error, StoreError) as error:
            raise StartupError(f"the audit database cannot be opened ({_name(error)})") from None
        self._pool = psycopg_pool.ConnectionPool(
            self._conninfo,
            kwargs={"autocommit": True},
            min_size=1,
            max_size=_READERS,
            timeout=5.0,
            reconnect_timeout=5.0,
            name="audit-readers",
            open=True,
        )

    def connect(self) -> psycopg.Connection:
        """Open a connection of one's own, in autocommit; raise ConnectionLostError."""
        try:
            return psycopg.connect(self._conninfo, autocommit=True)
        except psycopg.Error as error:
            raise ConnectionLostError(f"no connection ({_name(error)})") from None

    def read(self, query: str, values: Parameters = ()) -> list[Any]:
        """Run a query that changes nothing and return its rows; raise StoreBrokenError."""
        return self.run(lambda db: db.cursor(binary=True).execute(query, values).fetchall())

    def run(self, action: Callable[[psycopg.Connection], T]) -> T:
        """Run what may be repeated on a connection of the pool; raise a StoreError.

        A lost connection is not the end of it until `patience` is over.
        """
        return self._patiently(lambda: self._run(action))

    def moved(self) -> None:
        """Say that a writer found the database elsewhere: who reads must not stay behind."""
        self._pool.drain()

    def close(self) -> None:
        """Close the pool; connections of `connect` are their owners'."""
        self._pool.close()

    def _run(self, action: Callable[[psycopg.Connection], T]) -> T:
        try:
            with self._pool.connection() as db:
                return action(db)
        except psycopg_pool.PoolTimeout:
            raise ConnectionLostError("no connection (PoolTimeout)") from None
        except psycopg.Error as error:
            raise failure(error) from None

    def _patiently(self, action: Callable[[], T]) -> T:
        ends = time.monotonic() + self.patience
        pause = _PAUSE_SECONDS
        while True:
            try:
                return action()
            except ConnectionLostError as error:
                if time.monotonic() + pause >= ends:
                    raise StoreBrokenError(f"the audit database failed: {error}") from None
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def failure(error: psycopg.Error) -> StoreError:
    """Return what an error of the database means for the log. It carries the SQLSTATE alone.

    An error that ended the session (FATAL, or PANIC as of a failed fsync) says nothing of what
    became of its transaction, whatever its SQLSTATE: a full disk under the server's own log is one.
    """
    state = error.sqlstate
    if error.diag.severity_nonlocalized in ("FATAL", "PANIC"):
        return ConnectionLostError(f"the session was ended ({_name(error)})")
    # An interface error is a connection that is closed already.
    if state is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return ConnectionLostError(f"the connection failed ({_name(error)})")
    if state is not None and state.startswith(_PASSING):
        return ConnectionLostError(f"the connection failed ({state})")
    if state == "53100":
        return StoreFullError("no space for the audit log")
    return StoreBrokenError(f"the audit database failed ({_name(error)})")


def read_url(path: Path | None) -> str:
    """Return the one line of the file that says where the database is; raise StartupError."""
    if path is None:
        raise StartupError("SEALWARD_AUDIT_DATABASE_URL_FILE is not set")
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        raise StartupError("the file of SEALWARD_AUDIT_DATABASE_URL_FILE cannot be read") from None


def _checked(conninfo: str, schema: str) -> str:
    """Return the connection string with what must hold added; raise StartupError."""
    try:
        given = {k: str(v) for k, v in conninfo_to_dict(conninfo).items() if v is not None}
    except psycopg.Error:
        raise StartupError("the URL of the audit database is not one of libpq") from None
    hosts = given.get("host", "").split(",")
    if not all(hosts):
        raise StartupError("the URL of the audit database must name its host or socket folder")
    if {"options", "service"} & given.keys():
        raise StartupError("the URL of the audit database may not set options or service")
    if not all(host.startswith("/") for host in hosts):
        if given.get("sslmode") != "verify-full":
            raise StartupError("the URL of the audit database must say sslmode=verify-full")
        given["ssl_min_protocol_version"] = "TLSv1.3"
    elif "hostaddr" in given:
        raise StartupError("the URL of the audit database names a socket and an address")
    options = " ".join(f"-c {k}={v.format(schema=schema)}" for k, v in _SESSION.items())
    fixed = {"target_session_attrs": "read-write", "options": options}
    return make_conninfo(**{**_CLIENT, **given, **fixed})


def _name(error: Exception) -> str:
    return getattr(error, "sqlstate", None) or type(error).__name__
