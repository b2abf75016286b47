"""The ring of leased branch keys: renewal, hard limits, refusals, recovery."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sealward.kit.errors import SealwardError
from sealward.kit.keymetrics import LeaseMetrics
from sealward.kit.keysclient import BranchKey, KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.lease import Lease

CONTEXT = EncryptionContext("default", "session", "epoch-1")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys:
    """A keys service: wraps by remembering, can be down or refuse."""

    def __init__(self, lease: Lease | None = None) -> None:
        self.lease = lease or Lease(300, 900, 1000, 1 << 20)
        self.made: dict[bytes, tuple[EncryptionContext, bytes]] = {}
        self.problem: Reason | None = None
        self.opened = 0
        self.asked = threading.Event()

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        self._answer(timeout)
        wrapped = b"wrapped-%d" % len(self.made)
        self.made[wrapped] = (context, bytes([len(self.made)]) * 32)
        return self.made[wrapped][1], wrapped, self.lease

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        self.opened += 1
        self.asked.set()
        self._answer(timeout)
        bound, key = self.made[wrapped]
        if bound != context:
            raise SealwardError(Reason.SEAL_BROKEN, "no")
        return key, self.lease

    def _answer(self, timeout: float) -> None:
        assert timeout > 0
        if self.problem is not None:
            raise SealwardError(self.problem, "no")


class Stepped(KeyRing):
    """A ring without its thread: the test takes the turns."""

    def __init__(self, keys: Keys, clock: Clock, metrics: LeaseMetrics | None = None) -> None:
        self.told: list[bool] = []
        super().__init__(keys, on_ready=self.told.append, clock=clock, metrics=metrics)
        self._started = True

    def turn(self) -> None:
        self.renew_due()


def refused(branch: BranchKey) -> Reason:
    with pytest.raises(SealwardError) as caught:
        branch.use()
    return caught.value.reason


def test_create_then_open() -> None:
    keys, clock = Keys(), Clock()
    ring = Stepped(keys, clock)
    made = ring.create(CONTEXT)
    assert ring.open(CONTEXT, made.wrapped).use() == made.use()
    with pytest.raises(SealwardError) as caught:
        ring.open(CONTEXT.about("epoch-2"), made.wrapped)
    assert caught.value.reason is Reason.SEAL_BROKEN


def test_renews_at_the_soft_limit() -> None:
    keys, clock = Keys(), Clock()
    ring = Stepped(keys, clock)
    branch = ring.create(CONTEXT)
    clock.now += 299
    ring.turn()
    assert keys.opened == 0
    clock.now += 1
    ring.turn()
    assert keys.opened == 1
    clock.now += 899
    assert branch.use() == bytes(32)


def test_serves_to_the_hard_limit_then_fails_closed_then_recovers() -> None:
    keys, clock = Keys(), Clock()
    ring = Stepped(keys, clock)
    branch = ring.create(CONTEXT)
    sealed = branch.seal(b"plain")
    keys.problem = Reason.KEYS_UNAVAILABLE
    for _ in range(89):
        clock.now += 10
        ring.turn()
        assert branch.open(sealed) == b"plain"
    clock.now += 10
    ring.turn()
    assert refused(branch) is Reason.KEYS_UNAVAILABLE
    with pytest.raises(SealwardError):
        branch.open(sealed)
    assert ring.told == [False]
    keys.problem = None
    clock.now += 15
    ring.turn()
    assert branch.open(sealed) == b"plain"
    assert ring.told == [False, True]


def test_a_keys_service_that_hangs_hides_no_hard_limit() -> None:
    """While one renewal waits, the limit of another key is told in time."""
    clock = Clock()

    class Hanging(Keys):
        hangs = False

        def open(
            self, context: EncryptionContext, wrapped: bytes, timeout: float
        ) -> tuple[bytes, Lease]:
            if self.hangs:
                clock.now += timeout
                raise SealwardError(Reason.KEYS_UNAVAILABLE, "no")
            return super().open(context, wrapped, timeout)

    keys = Hanging(Lease(300, 303, 1000, 1 << 20))
    ring = Stepped(keys, clock)
    first = ring.create(CONTEXT)
    clock.now += 2
    ring.create(CONTEXT)
    keys.hangs = True
    clock.now += 298
    ring.turn()
    assert clock.now == 1303
    assert not first.live
    assert ring.told == [False]


def test_the_hard_limit_holds_without_any_turn() -> None:
    clock = Clock()
    branch = Stepped(Keys(), clock).create(CONTEXT)
    clock.now += 900
    assert refused(branch) is Reason.KEYS_UNAVAILABLE


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    clock = Clock()

    class Slow(Keys):
        def open(
            self, context: EncryptionContext, wrapped: bytes, timeout: float
        ) -> tuple[bytes, Lease]:
            clock.now += 4
            return super().open(context, wrapped, timeout)

    ring = Stepped(Slow(), clock)
    branch = ring.open(CONTEXT, ring.create(CONTEXT).wrapped)
    clock.now += 896
    assert refused(branch) is Reason.KEYS_UNAVAILABLE


@pytest.mark.parametrize("reason", [Reason.SEAL_BROKEN, Reason.IDENTITY_FORBIDDEN])
def test_a_refusal_beats_the_time_that_is_left(reason: Reason) -> None:
    keys, clock = Keys(), Clock()
    ring = Stepped(keys, clock)
    branch = ring.create(CONTEXT)
    clock.now += 300
    keys.problem = reason
    ring.turn()
    assert refused(branch) is Reason.KEYS_UNAVAILABLE
    assert ring.told == [False]


def test_retries_slow_down_and_are_not_hurried_by_uses() -> None:
    keys, clock = Keys(Lease(10, 1000, 4, 10_000)), Clock()
    ring = Stepped(keys, clock)
    branch = ring.create(CONTEXT)
    keys.problem = Reason.KEYS_UNAVAILABLE
    clock.now += 10
    for _ in range(600):
        ring.turn()
        clock.now += 0.1
        ring.wake(branch)
    assert 5 <= keys.opened <= 10


def test_a_key_used_up_is_renewed_at_once() -> None:
    keys, clock = Keys(Lease(300, 900, 4, 10_000)), Clock()
    ring = Stepped(keys, clock)
    branch = ring.create(CONTEXT)
    branch.use(messages=4)
    assert refused(branch) is Reason.KEYS_UNAVAILABLE
    ring.turn()
    assert branch.use(messages=4)


def test_objects_are_bound_to_their_resource() -> None:
    ring = Stepped(Keys(), Clock())
    branch = ring.create(CONTEXT)
    one, other = branch.seal(b"one", "a" * 64), branch.seal(b"other", "b" * 64)
    assert branch.open(one, "a" * 64) == b"one"
    with pytest.raises(SealwardError) as caught:
        branch.open(other, "a" * 64)
    assert caught.value.reason is Reason.SEAL_BROKEN
    with pytest.raises(SealwardError):
        branch.open(one)


def test_files_are_bound_to_their_resource_and_counted(tmp_path: Path) -> None:
    path, text = tmp_path / "sealed", os.urandom(3 << 20)
    branch = Stepped(Keys(Lease(300, 900, 1000, 7 << 20)), Clock()).create(CONTEXT)
    assert branch.seal_file(io.BytesIO(text), path, "epoch-2") == len(text)
    with pytest.raises(SealwardError) as caught, branch.open_file(path, "epoch-3"):
        pass
    assert caught.value.reason is Reason.SEAL_BROKEN
    with branch.open_file(path, "epoch-2") as opened:
        # Sealed and verified once: 6 MiB of the 7 that the lease allows.
        with pytest.raises(SealwardError) as caught:
            opened.read()
        assert caught.value.reason is Reason.KEYS_UNAVAILABLE


def test_work_on_a_file_ends_with_the_lease(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "sealed"

    class Slow(io.BytesIO):
        def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
            clock.now += 400
            return super().readinto(buffer)

    branch = Stepped(Keys(), clock).create(CONTEXT)
    with pytest.raises(SealwardError) as caught:
        branch.seal_file(Slow(bytes(8 << 20)), path)
    assert caught.value.reason is Reason.KEYS_UNAVAILABLE
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_while_it_is_read_is_broken(tmp_path: Path) -> None:
    path, text = tmp_path / "sealed", os.urandom(3 << 20)
    branch = Stepped(Keys(Lease(300, 900, 1000, 1 << 30)), Clock()).create(CONTEXT)
    branch.seal_file(io.BytesIO(text), path)

    def read_while_it_changes() -> None:
        with branch.open_file(path) as opened:
            assert opened.read(100) == text[:100]
            path.write_bytes(path.read_bytes()[:-1])
            opened.read()

    with pytest.raises(SealwardError) as caught:
        read_while_it_changes()
    assert caught.value.reason is Reason.SEAL_BROKEN


def test_metrics_tell_uses_requests_and_what_is_left() -> None:
    registry, clock = CollectorRegistry(), Clock()
    keys = Keys(Lease(300, 900, 10, 1000))
    ring = Stepped(keys, clock, LeaseMetrics(registry))

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, {"purpose": "session", **labels}) or 0.0

    branch = ring.create(CONTEXT)
    ring.open(CONTEXT, branch.wrapped)
    for _ in range(5):
        branch.use()
    assert value("sealward_key_uses_total", outcome="served") == 5
    assert value("sealward_key_requests_total", kind="create", outcome="ok") == 1
    assert value("sealward_key_requests_total", kind="open", outcome="ok") == 1
    assert value("sealward_key_leases", state="live") == 2
    clock.now += 100
    assert value("sealward_key_lease_seconds") == 800
    for messages, size, bound in ((6, 0, "messages"), (1, 1001, "bytes")):
        with pytest.raises(SealwardError):
            branch.use(size, messages)
        assert value("sealward_key_uses_total", outcome=bound) == 1
    clock.now += 200
    ring.turn()
    assert value("sealward_key_requests_total", kind="renew", outcome="ok") == 2
    keys.problem = Reason.KEYS_UNAVAILABLE
    clock.now += 300
    ring.turn()
    assert value("sealward_key_requests_total", kind="renew", outcome="failed") == 2
    clock.now += 600
    assert refused(branch) is Reason.KEYS_UNAVAILABLE
    assert value("sealward_key_uses_total", outcome="time") == 1
    assert value("sealward_key_leases", state="lost") == 2
    assert value("sealward_key_lease_seconds") == 0
    keys.problem = Reason.SEAL_BROKEN
    ring.turn()
    assert value("sealward_key_requests_total", kind="renew", outcome="refused") == 2
    assert value("sealward_key_uses_total", outcome="served") == 5


def test_close_forgets() -> None:
    keys, clock = Keys(), Clock()
    ring = Stepped(keys, clock)
    one, other = ring.create(CONTEXT), ring.create(CONTEXT)
    one.close()
    assert refused(one) is Reason.KEYS_UNAVAILABLE
    clock.now += 300
    ring.turn()
    assert keys.opened == 1
    ring.close()
    assert refused(other) is Reason.KEYS_UNAVAILABLE
    with pytest.raises(SealwardError):
        ring.create(CONTEXT)


def test_down_at_the_start_is_told() -> None:
    keys = Keys()
    keys.problem = Reason.KEYS_UNAVAILABLE
    with pytest.raises(SealwardError) as caught:
        Stepped(keys, Clock()).create(CONTEXT)
    assert caught.value.reason is Reason.KEYS_UNAVAILABLE


def test_the_thread_renews_and_fails_closed() -> None:
    """The real thread on the real clock: soft limit 20 ms, hard limit 300 ms."""
    keys = Keys(Lease(0.02, 0.3, 1000, 10_000))
    told = threading.Event()
    ring = KeyRing(keys, on_ready=lambda ready: None if ready else told.set())
    try:
        branch = ring.create(CONTEXT)
        for _ in range(3):
            keys.asked.clear()
            assert keys.asked.wait(10)
        keys.problem = Reason.KEYS_UNAVAILABLE
        assert told.wait(10)
        assert refused(branch) is Reason.KEYS_UNAVAILABLE
        keys.problem = None
        deadline = time.monotonic() + 10
        while not branch.live and time.monotonic() < deadline:
            keys.asked.clear()
            keys.asked.wait(1)
        assert branch.use()
    finally:
        ring.close()


def test_repr_shows_no_key() -> None:
    branch = Stepped(Keys(), Clock()).create(CONTEXT)
    assert repr(branch) == "BranchKey(purpose='session', live=True)"
