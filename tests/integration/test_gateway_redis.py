"""Sessions in Redis as in production: TLS, certificates, users; what is refused, what heals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.kit.tls import Credentials
from services.gateway.session import token_hash
from services.gateway.sessions import SessionStore, make_pool
from services.gateway.storetls import Remote, StoreTls, connection_options
from tests.conftest import CertificateAuthority
from tests.integration.test_gateway_sessions import SPKI, BoundSealer, Ledger, cached, reason, until
from tests.support.redis_server import PASSWORD, USER, Forwarder, RedisServer, acl

_LOG = structlog.get_logger()


@pytest.fixture
def server(tmp_path: Path, authority: CertificateAuthority) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", authority).start()
    yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path, server: RedisServer) -> Path:
    return server.credentials(tmp_path / "credentials")


def tls_of(folder: Path, port: int, **changes: Any) -> tuple[Remote, StoreTls]:
    values = {
        "host": "127.0.0.1", "port": port, "database": 0, "user": USER,
        "password_file": folder / "password", "ca_file": folder / "ca.pem",
        "cert_file": folder / "cert.pem", "key_file": folder / "key.pem",
    }  # fmt: skip
    remote = Remote(**{**values, **changes})
    own = Credentials(CertificateAuthority().issue("spiffe://sealward.local/service/gateway"))
    return remote, StoreTls(remote, own, _LOG)


def check(folder: Path, port: int, **changes: Any) -> bool:
    """What the gateway does when it starts."""
    remote, tls = tls_of(folder, port, **changes)
    return tls.check(make_pool("rediss://", remote=connection_options(remote, tls)))


@pytest.fixture
def open_store() -> Iterator[Callable[..., SessionStore]]:
    opened: list[SessionStore] = []
    ledger = Ledger()

    def make(folder: Path, port: int, states: list[bool] | None = None) -> SessionStore:
        remote, tls = tls_of(folder, port)
        ready: list[bool] = [] if states is None else states
        store = SessionStore(
            make_pool("rediss://", remote=connection_options(remote, tls)),
            BoundSealer(), ledger, _LOG,
            idle_seconds=60, life_seconds=600, on_state=ready.append, mark=tls.mark,
        )  # fmt: skip
        store.start()
        opened.append(store)
        until(lambda: ready[-1:] == [True])
        return store

    yield make
    for store in opened:
        store.stop()


def test_sessions_live_in_redis_through_tls_and_an_end_is_pushed(
    server: RedisServer, folder: Path, open_store: Callable[..., SessionStore]
) -> None:
    assert check(folder, server.port)
    one, two = open_store(folder, server.port), open_store(folder, server.port)
    token, made = one.create("u1", "ada", ["clinician"], SPKI)
    assert cached(two, token_hash(token)) == made
    assert one.end_all("u1") == 1
    until(lambda: two.find(token_hash(token), SPKI) is None)
    assert reason(lambda: two.load(token_hash(token), SPKI)) is Reason.SESSION_INVALID


@pytest.mark.parametrize(
    "command",
    [
        ("KEYS", "*"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "foreign"), ("SCAN", "0"),
        ("SET", "foreign", "1"), ("SUBSCRIBE", "news"), ("ACL", "LIST"), ("BGSAVE",),
        ("EVAL", "return 1", "0"), ("SHUTDOWN",), ("REPLICAOF", "NO", "ONE"), ("MONITOR",),
    ],
)  # fmt: skip
def test_the_gateways_user_may_do_nothing_else(
    server: RedisServer, folder: Path, command: tuple[str, ...]
) -> None:
    with server.client(folder) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_nobody_gets_in_without_a_certificate_or_without_a_user(
    server: RedisServer, folder: Path
) -> None:
    bare = redis.Redis(port=server.port, ssl=True, ssl_ca_certs=str(folder / "ca.pem"))
    with bare, pytest.raises(redis.ConnectionError):
        bare.ping()
    plain = redis.Redis(port=server.port, socket_timeout=2)
    with plain, pytest.raises((redis.ConnectionError, redis.TimeoutError)):
        plain.ping()
    nobody: Any = server.client(folder, user="", password="")
    with nobody, pytest.raises(redis.RedisError):
        nobody.ping()
    monitor = server.client(folder, user="sealward-monitor")
    with monitor:
        assert monitor.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            monitor.get("sess:x")


def _refusal(folder: Path, port: int, **changes: Any) -> str:
    with pytest.raises(StartupError) as caught:
        check(folder, port, **changes)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def test_what_waiting_does_not_heal_stops_the_start_in_one_line(
    server: RedisServer, folder: Path, tmp_path: Path
) -> None:
    stranger = CertificateAuthority("stranger")
    wrong = server.credentials(tmp_path / "wrong", stranger)
    assert "refuses our client certificate" in _refusal(wrong, server.port)
    (wrong / "ca.pem").write_bytes(stranger.pem)
    assert "not of the authority" in _refusal(wrong, server.port)
    assert "not for the host" in _refusal(folder, server.port, host="localhost")
    (wrong / "password").write_bytes(b"another one")
    password_file = wrong / "password"
    assert "does not know the user" in _refusal(folder, server.port, password_file=password_file)
    assert "does not know" in _refusal(folder, server.port, user="mallory")
    weak = _refusal(folder, server.port, user="sealward-monitor")
    assert "may not GET sess-key:default" in weak
    with pytest.raises(StartupError, match=r"session store: .*does not belong"):
        tls_of(folder, server.port, key_file=wrong / "key.pem")[1].context()


def test_a_store_that_lets_in_whoever_has_a_certificate_is_refused(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    users = "user default on nopass -@all +ping\n" + acl().split("\n", 1)[1]
    server = RedisServer(tmp_path / "open", authority, users)
    server.start()
    try:
        folder = server.credentials(tmp_path / "credentials")
        assert "answers without a user" in _refusal(folder, server.port)
    finally:
        server.stop()


def test_a_store_that_is_away_is_waited_for(server: RedisServer, folder: Path) -> None:
    server.stop()
    assert not check(folder, server.port)
    server.start()
    assert check(folder, server.port)


def test_it_fails_closed_and_heals_after_a_restart_and_a_partition(
    server: RedisServer, folder: Path, open_store: Callable[..., SessionStore]
) -> None:
    states: list[bool] = []
    store = open_store(folder, server.port, states)
    token, _ = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    unavailable = Reason.SESSION_STORE_UNAVAILABLE
    cached(store, name)
    with server.held():
        until(lambda: not store._link.fresh())
        assert store.find(name, SPKI) is None
        assert reason(lambda: store.load(name, SPKI)) is unavailable
        until(lambda: states[-1] is False)
    until(lambda: states[-1])
    cached(store, name)
    server.stop()
    until(lambda: states[-1] is False)
    assert reason(lambda: store.load(name, SPKI)) is unavailable
    server.start()
    until(lambda: states[-1])
    # Its file has every write.
    cached(store, name)


def test_a_failover_brings_no_ended_session_back_and_needs_no_restart(
    server: RedisServer,
    folder: Path,
    tmp_path: Path,
    authority: CertificateAuthority,
    open_store: Callable[..., SessionStore],
) -> None:
    replicating = f"user replica on >{PASSWORD} ~* +@all\n"
    for one in (server,):
        one.stop()
        one.users += replicating
        one.start()
    other = RedisServer(
        tmp_path / "replica", authority, acl() + replicating, replica_of=server.port
    ).start()
    address = Forwarder(server.port)
    try:
        states: list[bool] = []
        store = open_store(folder, address.port, states)
        token, _ = store.create("u1", "ada", ["clinician"], SPKI)
        ended, gone = store.create("u1", "ada", ["clinician"], SPKI)
        replica: Any = other.client(folder, "replica")
        until(lambda: replica.exists(f"sess:{token_hash(ended)}", f"sess:{token_hash(token)}") == 2)
        # The replica is cut off before the end of a session reaches it: what it has is older.
        replica.execute_command("REPLICAOF", "NO", "ONE")
        store.end(gone)
        address.target = other.port
        primary: Any = server.client(folder, "replica")
        primary.execute_command("REPLICAOF", "127.0.0.1", other.port)

        # The old server answers reads still; the first write finds out that it is a replica.
        def writes() -> bool:
            with suppress(SealwardError):
                store.create("u2", "bob", ["clinician"], SPKI)
                return True
            return False

        until(writes)
        until(lambda: states[-1])
        cached(store, token_hash(token))
        assert reason(lambda: store.load(token_hash(ended), SPKI)) is Reason.SESSION_INVALID
    finally:
        address.close()
        other.stop()


def test_another_client_certificate_is_taken_without_a_restart(
    server: RedisServer,
    folder: Path,
    tmp_path: Path,
    authority: CertificateAuthority,
    open_store: Callable[..., SessionStore],
) -> None:
    states: list[bool] = []
    coming = CertificateAuthority("coming")
    server.stop()
    server.trusted = authority.pem + coming.pem
    server.start()
    store = open_store(folder, server.port, states)
    token, _ = store.create("u1", "ada", ["clinician"], SPKI)
    cached(store, token_hash(token))
    new = server.credentials(tmp_path / "new", coming)
    # One file after the other: in between they do not belong together.
    (new / "cert.pem").replace(folder / "cert.pem")
    assert store.load(token_hash(token), SPKI).user == "ada"
    (new / "key.pem").replace(folder / "key.pem")
    # A server that trusts the new authority alone: it is the new certificate that is shown.
    server.stop()
    server.trusted = coming.pem
    server.start()
    until(lambda: states[-1] and store._link.fresh())
    cached(store, token_hash(token))
