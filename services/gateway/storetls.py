"""A session store on the network: TLS 1.3 with a client certificate, and a user of its ACL.

What a connection is made with is read anew for each one, so that a renewed certificate, another
authority or another password needs no restart; `mark` tells whether it changed, and the link then
moves to new connections (invalidation.py). Without files of its own the gateway shows its service
certificate, which it renews by itself.
"""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import structlog

from sealward.kit.errors import StartupError
from sealward.kit.tls import Credentials, load_material

_ALERT_SECONDS = 0.5
_SHIPPED = "deploy/redis/users.acl"


@dataclass(frozen=True, slots=True)
class Remote:
    """Where the store is and how to get in. Files left out are the service's own certificate."""

    host: str
    port: int
    database: int
    user: str
    password_file: Path
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class StoreTls(redis.CredentialProvider):
    """What connections to the store are made with. Thread-safe."""

    def __init__(
        self, remote: Remote, own: Credentials, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._remote = remote
        self._own = own
        self._log = log
        self._made: tuple[object, ssl.SSLContext] | None = None

    def mark(self) -> object:
        """Tell one state of certificate, authority and password from another."""
        remote, own = self._remote, self._own.material
        return (
            own.serial if remote.cert_file is None else _state(remote.cert_file),
            own.bundle_pem if remote.ca_file is None else _state(remote.ca_file),
            _state(remote.key_file),
            _state(remote.password_file),
        )

    def context(self) -> ssl.SSLContext:
        """Return what a connection is opened with now; raise StartupError in one clear line.

        Files that are being exchanged one after the other do not belong together for a moment: what
        was read last goes on serving until they do.
        """
        mark, made = self.mark(), self._made
        if made is not None and made[0] == mark:
            return made[1]
        try:
            context = self._read()
        except StartupError as error:
            if made is None:
                raise StartupError(f"session store: {error}") from None
            self._log.warning("sessions.certificate-unusable", reason=str(error))
            context = made[1]
        self._made = mark, context
        return context

    def _read(self) -> ssl.SSLContext:
        remote, own = self._remote, self._own.material
        bundle, key, chain = own.bundle_pem, own.key_pem, own.chain_pem
        if remote.ca_file is not None:
            bundle = _read(remote.ca_file, "authority")
        if remote.cert_file is not None and remote.key_file is not None:
            chain = _read(remote.cert_file, "certificate")
            key = _read(remote.key_file, "key")
        material = load_material(key, chain, bundle)
        return Credentials(material).ssl_context(ssl.Purpose.SERVER_AUTH)

    def get_credentials(self) -> tuple[str, str]:
        """See redis.CredentialProvider."""
        try:
            return self._remote.user, _read(self._remote.password_file, "password").decode().strip()
        except (StartupError, UnicodeDecodeError):
            raise redis.ConnectionError("no password") from None

    def check(self, pool: redis.ConnectionPool) -> bool:
        """Try what the gateway will do; return whether the store could be asked.

        Raise StartupError in one line for what does not heal by waiting: certificates, authority,
        user, password, rights, or a store that lets in whoever has a certificate.
        """
        user = self._remote.user
        client: Any = redis.Redis(connection_pool=pool)
        try:
            for command in _needed():
                try:
                    client.execute_command(*command)
                except redis.exceptions.NoPermissionError:
                    shown = " ".join(str(part) for part in command[:2])
                    raise StartupError(
                        f"the session store's user {user} may not {shown}: see {_SHIPPED}"
                    ) from None
            _check_closed(pool)
        except redis.AuthenticationError:
            raise StartupError(
                f"the session store does not know the user {user} with this password, or it is off"
            ) from None
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            problem = _told(error) or self._alert()
            if problem:
                raise StartupError(problem) from None
            return False
        except redis.RedisError:
            return False
        return True

    def _alert(self) -> str:
        """Say what the server says when we say nothing.

        A TLS 1.3 server refuses a client certificate when the handshake is over for the client; who
        writes first may see an end without its reason.
        """
        address = (self._remote.host, self._remote.port)
        try:
            with (
                socket.create_connection(address, _ALERT_SECONDS) as plain,
                self.context().wrap_socket(plain, server_hostname=self._remote.host) as secure,
            ):
                secure.recv(1)
        except (OSError, StartupError) as error:
            return _told(error)
        return ""


class _TlsConnection(redis.SSLConnection):
    """A connection whose TLS context is asked for when it is opened."""

    def __init__(self, *, store_tls: StoreTls, **options: Any) -> None:
        self._store_tls = store_tls
        super().__init__(**options)

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        try:
            context = self._store_tls.context()
        except StartupError as error:
            # While it runs, a file that is half written heals with the next connection.
            raise redis.ConnectionError("no TLS context") from error
        return context.wrap_socket(sock, server_hostname=self.host)


def connection_options(remote: Remote, tls: StoreTls) -> dict[str, Any]:
    """Return what a connection pool to this store is made of."""
    return {
        "connection_class": _TlsConnection,
        "host": remote.host,
        "port": remote.port,
        "db": remote.database,
        "credential_provider": tls,
        "store_tls": tls,
    }


def _needed() -> Iterator[tuple[Any, ...]]:
    """Every command of the gateway once, on keys that no session has."""
    name = f"probe-{secrets.token_hex(8)}"
    yield "GET", "sess-key:default"
    yield ("TIME",)
    yield "CLIENT", "ID"
    for prefix in ("sess:", "sess-idle:", "sess-id:", "sess-key:", "sess-once:", "sess-challenge:"):
        yield "SET", prefix + name, "1", "EX", 1
        yield "GET", prefix + name
        yield "PTTL", prefix + name
        yield "EXPIRE", prefix + name, 1
        yield "DEL", prefix + name
    yield "INCRBY", f"quota:{name}", 1
    yield "EXPIRE", f"quota:{name}", 1
    yield "SADD", f"sess-user:{name}", "1"
    yield "SMEMBERS", f"sess-user:{name}"
    yield "SREM", f"sess-user:{name}", "1"
    yield "EXPIREAT", f"sess-user:{name}", 1


def _check_closed(pool: redis.ConnectionPool) -> None:
    """Refuse a store that answers a connection with a certificate and no user."""
    options = {**pool.connection_kwargs, "credential_provider": None}
    connection: Any = pool.connection_class(**options)
    try:
        connection.connect()
        connection.send_command("PING")
        answer = connection.read_response()
    except redis.RedisError:
        return
    finally:
        connection.disconnect()
    if answer in (b"PONG", "PONG"):
        raise StartupError(
            f"the session store answers without a user: turn its default user off (see {_SHIPPED})"
        )


def _told(error: BaseException) -> str:
    """Say what is wrong with a connection that TLS refused; empty when the store is just away."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StartupError):
            return str(seen)
        if isinstance(seen, ssl.SSLCertVerificationError):
            if seen.verify_code in _NAME_CODES:
                return "the session store's certificate is not for the host in REDIS_URL"
            return (
                "the session store's certificate is not of the authority that we trust"
                " (SEALWARD_GATEWAY_REDIS_CA_FILE)"
            )
        if isinstance(seen, ssl.SSLError):
            reason = str(seen.reason or "")
            if "ALERT" in reason:
                return (
                    "the session store refuses our client certificate"
                    " (SEALWARD_GATEWAY_REDIS_CERT_FILE)"
                )
            if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return "the session store speaks no TLS 1.3"
        seen = seen.__cause__ or seen.__context__
    return ""


_NAME_CODES = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, …_IP_ADDRESS_MISMATCH


def _state(path: Path | None) -> object:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return ""
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise StartupError(f"the file of the {what} cannot be read") from None
