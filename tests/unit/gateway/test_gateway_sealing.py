"""The branch key that all gateways share, and what happens when store or keys are away."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import redis
import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.lease import Lease
from services.gateway.sealing import CONTEXT, SessionSealer
from tests.support.local_keys import LocalKeys

LEASE = Lease(60, 120, 1000, 1 << 20)
NAME = "ab" * 32


class Keys:
    """A keys service: wrapped keys open for their own context only."""

    def __init__(self) -> None:
        self.known: dict[tuple[EncryptionContext, bytes], bytes] = {}
        self.up = True

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        self._answer()
        key, wrapped = secrets.token_bytes(32), secrets.token_bytes(40)
        self.known[context, wrapped] = key
        return key, wrapped, LEASE

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        self._answer()
        if not 0 < len(wrapped) <= 4096:
            raise SealwardError(Reason.FIELD_INVALID, "not of a key's length", field="wrapped")
        if (context, wrapped) not in self.known:
            raise SealwardError(Reason.SEAL_BROKEN, "not ours")
        return self.known[context, wrapped], LEASE

    def _answer(self) -> None:
        if not self.up:
            raise SealwardError(Reason.KEYS_UNAVAILABLE, "down")


class Shelf:
    """As much of a Redis client as the sealer uses."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.up = True

    def get(self, key: str) -> bytes | None:
        self._answer()
        return self.values.get(key)

    def set(self, key: str, value: bytes, *, nx: bool = False) -> None:
        self._answer()
        if not nx or key not in self.values:
            self.values[key] = value

    def pipeline(self) -> Exchange:
        return Exchange(self)

    def _answer(self) -> None:
        if not self.up:
            raise redis.ConnectionError


class Exchange:
    """A transaction on watched keys; `between` is what somebody else does just before its end."""

    between: Callable[[Shelf], None] = staticmethod(lambda _shelf: None)

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._sets = shelf, {}  # type: ignore[var-annotated]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self, *_keys: str) -> None:
        self._seen = dict(self._shelf.values)

    def get(self, key: str) -> bytes | None:
        return self._shelf.get(key)

    def multi(self) -> None:
        pass

    def set(self, key: str, value: bytes) -> None:
        self._sets[key] = value

    def execute(self) -> None:
        self.between(self._shelf)
        if self._shelf.values != self._seen:
            raise redis.WatchError
        self._shelf.values.update(self._sets)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def gateway(keys: Keys, shelf: Shelf) -> Any:
    rings: list[KeyRing] = []

    def make() -> SessionSealer:
        ring = KeyRing(keys)
        rings.append(ring)
        sealer = SessionSealer(redis.ConnectionPool(), ring, structlog.get_logger())
        sealer._redis = shelf  # type: ignore[assignment]
        return sealer

    yield make
    for ring in rings:
        ring.close()


Gateway = Callable[[], SessionSealer]


def reason(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


def test_one_gateway_opens_what_another_sealed(gateway: Gateway) -> None:
    sealed = gateway().seal(b"plain text", NAME)
    assert b"plain text" not in sealed
    assert gateway().open(sealed, NAME) == b"plain text"


def test_a_value_opens_under_its_own_name_only(gateway: Gateway) -> None:
    sealer = gateway()
    sealed = sealer.seal(b"session", NAME)
    assert reason(lambda: sealer.open(sealed, "cd" * 32)) is Reason.SEAL_BROKEN
    assert (
        reason(lambda: sealer.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), NAME))
        is Reason.SEAL_BROKEN
    )
    assert reason(lambda: sealer.open(b"forged", NAME)) is Reason.SEAL_BROKEN


def test_a_store_that_forgot_gets_the_same_key_back(gateway: Gateway, shelf: Shelf) -> None:
    one = gateway()
    sealed = one.seal(b"session", NAME)
    shelf.values.clear()
    one.recheck()
    one.prepare()
    assert gateway().open(sealed, NAME) == b"session"


def test_gateways_agree_after_a_store_that_forgot_met_another_one_first(
    gateway: Gateway, shelf: Shelf
) -> None:
    one, two = gateway(), gateway()
    one.prepare()
    shelf.values.clear()
    two.prepare()
    one.recheck()
    assert one.open(two.seal(b"session", NAME), NAME) == b"session"


def test_a_key_of_another_deployment_is_replaced(gateway: Gateway, shelf: Shelf) -> None:
    shelf.values["sess-key:default"] = b"somebody else's"
    one, two = gateway(), gateway()
    assert two.open(one.seal(b"session", NAME), NAME) == b"session"


@pytest.mark.parametrize("garbage", [b"somebody else's", b"", b"x" * 5000])
def test_garbage_in_the_place_of_the_key_costs_no_session(
    gateway: Gateway, shelf: Shelf, garbage: bytes
) -> None:
    sealer = gateway()
    sealed = sealer.seal(b"session", NAME)
    shelf.values["sess-key:default"] = garbage
    assert gateway().open(gateway().seal(b"new", NAME), NAME) == b"new"
    shelf.values["sess-key:default"] = garbage
    sealer.recheck()
    assert sealer.open(sealed, NAME) == b"session"
    assert gateway().open(sealed, NAME) == b"session"


def test_a_key_serves_on_after_another_one_could_not_be_opened(
    gateway: Gateway, keys: Keys, shelf: Shelf
) -> None:
    one, two = gateway(), gateway()
    sealed = one.seal(b"session", NAME)
    ours = shelf.values.pop("sess-key:default")
    two.prepare()
    one.recheck()
    keys.up = False
    assert reason(lambda: one.open(sealed, NAME)) is Reason.KEYS_UNAVAILABLE
    shelf.values["sess-key:default"] = ours
    assert one.open(sealed, NAME) == b"session"


def test_without_keys_nothing_is_sealed_and_it_heals(gateway: Gateway, keys: Keys) -> None:
    keys.up = False
    sealer = gateway()
    assert reason(lambda: sealer.seal(b"x", NAME)) is Reason.KEYS_UNAVAILABLE
    keys.up = True
    assert sealer.open(sealer.seal(b"x", NAME), NAME) == b"x"


def test_keys_away_never_replaces_the_shared_key(
    gateway: Gateway, keys: Keys, shelf: Shelf
) -> None:
    sealed = gateway().seal(b"x", NAME)
    keys.up = False
    later = gateway()
    assert reason(lambda: later.open(sealed, NAME)) is Reason.KEYS_UNAVAILABLE
    keys.up = True
    assert later.open(sealed, NAME) == b"x"


def test_the_store_away(gateway: Gateway, shelf: Shelf) -> None:
    shelf.up = False
    sealer = gateway()
    assert reason(lambda: sealer.seal(b"x", NAME)) is Reason.SESSION_STORE_UNAVAILABLE
    shelf.up = True
    sealer.seal(b"x", NAME)


# --- the key moves on to a newer key-encryption key -----------------------------------------------

PLACE = "sess-key:default"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalKeys]:
    made = LocalKeys(tmp_path / "keys")
    yield made
    made.close()


@pytest.fixture
def pair(local: LocalKeys, shelf: Shelf) -> Iterator[list[SessionSealer]]:
    """Two gateways on one store."""
    rings = [local.ring(), local.ring()]
    made = []
    for ring in rings:
        sealer = SessionSealer(redis.ConnectionPool(), ring, structlog.get_logger())
        sealer._redis = shelf  # type: ignore[assignment]
        made.append(sealer)
    yield made
    for ring in rings:
        ring.close()


def test_sessions_stay_while_the_key_moves_on(
    local: LocalKeys, shelf: Shelf, pair: list[SessionSealer]
) -> None:
    one, two = pair
    sealed = one.seal(b"session", NAME)
    assert two.open(sealed, NAME) == b"session"
    local.rotate()
    answer = local.move(one, "service/gateway")["default/session"]
    assert (answer.total, answer.moved, answer.confirmed) == (1, 1, True)
    local.retire()
    for sealer in pair:
        branch = sealer.prepare()
        # The time of the lease is over: the ring asks anew.
        sealer._ring._renew(branch)
        assert sealer.open(sealed, NAME) == b"session"
        assert branch.wrapped == shelf.values[PLACE]


def test_a_store_without_a_key_has_nothing_to_move(
    local: LocalKeys, pair: list[SessionSealer]
) -> None:
    assert pair[0].places("default", "session") == ()
    assert pair[0].places("other", "session") == ()
    assert pair[0].rewrap([PLACE], lambda _keys: []) == (0, [])


def test_what_another_gateway_shelved_meanwhile_is_left(
    local: LocalKeys, shelf: Shelf, pair: list[SessionSealer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    one.prepare()
    local.rotate()
    _, theirs = local.provider.create(CONTEXT)
    monkeypatch.setattr(
        Exchange, "between", staticmethod(lambda shelf: shelf.values.update({PLACE: theirs}))
    )
    one.rewrap([PLACE], lambda keys: local.provider.rewrap([(k.context, k.wrapped) for k in keys]))
    assert shelf.values[PLACE] == theirs


def test_a_store_that_is_away_is_told(
    local: LocalKeys, shelf: Shelf, pair: list[SessionSealer]
) -> None:
    pair[0].prepare()
    local.rotate()
    shelf.up = False
    assert reason(lambda: local.move(pair[0], "service/gateway")) is (
        Reason.SESSION_STORE_UNAVAILABLE
    )
    shelf.up = True
    assert local.move(pair[0], "service/gateway")["default/session"].confirmed
