"""Locks after failed logins: by user, by source, over restarts, and taken away again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import argon2
import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer, parse_identity
from sealward.kit.reasons import Reason
from services.gateway.lockouts import SOURCE, USER, Lockouts
from services.gateway.passwords import Passwords
from services.gateway.servicer import source_of
from services.gateway.throttle import LoginThrottle
from services.gateway.users import UserDirectory

PASSWORD = "a long enough password"
HERE, THERE = "192.0.2.1", "192.0.2.2"
CHEAP = argon2.Parameters(
    type=argon2.Type.ID, version=19, salt_len=16, hash_len=32,
    time_cost=1, memory_cost=64, parallelism=1,
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kinds() -> list[str]:
    return []


@pytest.fixture
def lockouts(tmp_path: Path, clock: Clock, kinds: list[str]) -> Iterator[Lockouts]:
    made = Lockouts(
        tmp_path / "lockouts.db", clock, failures=3, source_failures=5, seconds=100,
        locked=kinds.append,
    )  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def users(tmp_path: Path, clock: Clock, lockouts: Lockouts) -> Iterator[UserDirectory]:
    throttle = LoginThrottle(clock, free=100, lockouts=lockouts)
    directory = UserDirectory(tmp_path / "users.db", Passwords(CHEAP), throttle)
    for name in ("ada", "bob"):
        directory.create(name, ["clinician"], PASSWORD, one_time=False)
    yield directory
    directory.close()


def reason(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


def fail(users: UserDirectory, name: str, source: str = HERE) -> None:
    wrong = lambda: users.authenticate(name, "wrong" * 3, source=source)  # noqa: E731
    assert reason(wrong) is Reason.LOGIN_FAILED


def test_a_user_is_locked_with_the_right_password_too_and_the_lock_ends(
    users: UserDirectory, clock: Clock, kinds: list[str]
) -> None:
    for _ in range(3):
        fail(users, "ada")
    with pytest.raises(SealwardError) as caught:
        users.authenticate("ada", PASSWORD, source=THERE)
    assert (caught.value.reason, caught.value.retry_after) == (Reason.LOGIN_LOCKED, 100)
    assert kinds == [USER]
    assert users.throttle.locks(USER) == {"ada": 1_100}
    users.authenticate("bob", PASSWORD, source=HERE)
    clock.now += 100
    users.authenticate("ada", PASSWORD, source=HERE)
    fail(users, "ada")


def test_a_name_that_nobody_has_is_locked_in_the_same_way(users: UserDirectory) -> None:
    answers = []
    for name in ("ada", "nobody"):
        for _ in range(4):
            with pytest.raises(SealwardError) as caught:
                users.authenticate(name, "wrong" * 3, source="")
            error = caught.value
            answers.append((error.reason, error.message, error.retry_after, error.field))
    assert answers[:4] == answers[4:]
    assert answers[3][0] is Reason.LOGIN_LOCKED


def test_a_source_is_locked_for_everybody_and_no_success_clears_it(
    users: UserDirectory, kinds: list[str]
) -> None:
    for name in ("ada", "ada", "x", "y"):
        fail(users, name)
    users.authenticate("bob", PASSWORD, source=HERE)
    # Whoever shows the certificate of somebody else counts as well.
    users.throttle.failed("", HERE)
    locked = lambda: users.authenticate("bob", PASSWORD, source=HERE)  # noqa: E731
    assert reason(locked) is Reason.LOGIN_LOCKED
    assert kinds == [SOURCE]
    users.authenticate("bob", PASSWORD, source=THERE)
    assert users.throttle.unlock(source=HERE)
    users.authenticate("bob", PASSWORD, source=HERE)


def test_locks_survive_a_restart_and_an_unlock_ends_them(
    tmp_path: Path, users: UserDirectory, clock: Clock
) -> None:
    for _ in range(3):
        fail(users, "ada")
    again = Lockouts(tmp_path / "lockouts.db", clock, failures=3, seconds=100)
    assert reason(lambda: again.check("ada", "")) is Reason.LOGIN_LOCKED
    assert again.unlock(USER, "ada")
    assert not again.unlock(USER, "ada")
    again.close()
    users.authenticate("ada", PASSWORD, source=HERE)


def test_failures_of_long_ago_do_not_count(users: UserDirectory, clock: Clock) -> None:
    for _ in range(5):
        fail(users, "ada", "")
        clock.now += 101
    users.authenticate("ada", PASSWORD)


def test_a_right_password_does_not_clear_what_wrong_codes_have_counted(
    users: UserDirectory,
) -> None:
    def wrong_code(_user: object) -> None:
        users.throttle.failed("ada")
        raise SealwardError(Reason.SECOND_FACTOR_WRONG, "wrong")

    guess = lambda: users.authenticate("ada", PASSWORD, "", wrong_code)  # noqa: E731
    for _ in range(3):
        assert reason(guess) is Reason.SECOND_FACTOR_WRONG
    assert reason(guess) is Reason.LOGIN_LOCKED


def test_guesses_at_the_same_time_count_before_the_right_one(
    users: UserDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    verify = Passwords.verify

    def slow(self: Passwords, secret: str | None, password: str) -> bool:
        if password == PASSWORD:
            inside.set()
            assert go_on.wait(20)
        return verify(self, secret, password)

    monkeypatch.setattr(Passwords, "verify", slow)
    found: list[Reason] = []
    right = threading.Thread(
        target=lambda: found.append(reason(lambda: users.authenticate("ada", PASSWORD)))
    )
    right.start()
    assert inside.wait(20)
    for _ in range(3):
        fail(users, "ada", "")
    go_on.set()
    right.join(20)
    assert found == [Reason.LOGIN_LOCKED]


def test_logins_of_one_name_leave_room_for_the_others(
    users: UserDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def held(_self: Passwords, _secret: str | None, _password: str) -> bool:
        waiting.release()
        return go_on.wait(20)

    monkeypatch.setattr(Passwords, "verify", held)
    both = [threading.Thread(target=lambda: users.authenticate("ada", PASSWORD)) for _ in range(2)]
    for one in both:
        one.start()
    for _ in both:
        assert waiting.acquire(timeout=20)
    with pytest.raises(SealwardError) as caught:
        users.authenticate("ada", PASSWORD)
    assert (caught.value.reason, caught.value.retry_after) == (Reason.OVERLOADED, 1.0)
    go_on.set()
    users.authenticate("bob", PASSWORD)
    for one in both:
        one.join(20)


def test_what_callers_make_up_is_bounded(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.lockouts._MOST_ROWS", 4)
    lockouts = Lockouts(tmp_path / "few.db", clock, failures=2, seconds=1_000)
    for _ in range(2):
        lockouts.failed("ada", "")
    for number in range(20):
        clock.now += 1
        lockouts.failed(f"made-up-{number}", "")
    (count,) = lockouts._db.execute("SELECT count(*) FROM failure").fetchone()
    assert count == 4
    assert lockouts.locks(USER) == {"ada": 2_000}
    lockouts.close()


def test_a_damaged_file_stops_the_start(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "lockouts.db").write_bytes(b"\xff" * 8192)
    with pytest.raises(StartupError):
        Lockouts(tmp_path / "lockouts.db", clock)


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("ipv4:192.0.2.1:5555", "192.0.2.1"), ("ipv6:[2001:db8::1]:5555", "2001:db8::1"),
        ("ipv6:%5B2001:db8::1%5D:5555", "2001:db8::1"), ("unix:/x", ""), ("", ""),
    ],
)  # fmt: skip
def test_sources(address: str, source: str) -> None:
    peer = Peer(parse_identity("spiffe://sealward.local/user/ada"), b"", address)
    assert source_of(peer) == source
