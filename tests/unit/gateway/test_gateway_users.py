"""The user directory, passwords and the wait after failed logins."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import argon2
import pytest

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from services.gateway.passwords import Passwords
from services.gateway.session import Session
from services.gateway.throttle import LoginThrottle
from services.gateway.users import User, UserDirectory

PASSWORD = "a long enough password"
NEW = "another long password"
CHEAP = argon2.Parameters(
    type=argon2.Type.ID, version=19, salt_len=16, hash_len=32,
    time_cost=1, memory_cost=64, parallelism=1,
)  # fmt: skip


def reason(call: Callable[[], object]) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call()
    return caught.value.reason


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(tmp_path: Path, clock: Clock) -> Iterator[UserDirectory]:
    passwords = Passwords(CHEAP)
    directory = UserDirectory(tmp_path / "users.db", passwords, LoginThrottle(clock))
    yield directory
    directory.close()
    passwords.close()


def test_a_user_logs_in_with_the_right_password_only(users: UserDirectory) -> None:
    made = users.create("ada", ["operator", "clinician"], PASSWORD, one_time=False)
    assert made.roles == ("clinician", "operator")
    assert users.authenticate("ada", PASSWORD) == made
    assert reason(lambda: users.authenticate("ada", PASSWORD + "x")) is Reason.LOGIN_FAILED


def test_unknown_disabled_and_wrong_get_the_same_answer_after_the_same_work(
    users: UserDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.create("ada", ["clinician"], PASSWORD, one_time=False)
    users.create("bob", ["clinician"], PASSWORD, one_time=False)
    users.disable("bob")
    hashed: list[tuple[int, int, int]] = []
    real = argon2.PasswordHasher.verify

    def verify(hasher: argon2.PasswordHasher, secret: str, password: str) -> bool:
        p = argon2.extract_parameters(secret)
        hashed.append((p.memory_cost, p.time_cost, p.hash_len))
        return real(hasher, secret, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    answers = set()
    for name, password in (("ada", "wrong" * 3), ("bob", PASSWORD), ("eve", PASSWORD)):
        with pytest.raises(SealwardError) as caught:
            users.authenticate(name, password)
        answers.add((caught.value.reason, caught.value.message, caught.value.field))
    assert answers == {(Reason.LOGIN_FAILED, "user name or password is wrong", "")}
    assert len(hashed) == 3
    assert len(set(hashed)) == 1


def test_a_one_time_password_has_to_be_changed_and_then_is_dead(users: UserDirectory) -> None:
    users.create("ada", ["clinician"], PASSWORD, one_time=True)
    must_change = Reason.PASSWORD_CHANGE_REQUIRED
    assert reason(lambda: users.authenticate("ada", PASSWORD)) is must_change
    same = Reason.PASSWORD_UNACCEPTABLE
    assert reason(lambda: users.authenticate("ada", PASSWORD, PASSWORD)) is same
    assert reason(lambda: users.authenticate("ada", PASSWORD, "short")) is same
    users.authenticate("ada", PASSWORD, NEW)
    assert reason(lambda: users.authenticate("ada", PASSWORD, "yet another one")) is (
        Reason.LOGIN_FAILED
    )
    users.authenticate("ada", NEW)


def test_a_one_time_password_serves_one_of_many_at_once(
    tmp_path: Path, users: UserDirectory
) -> None:
    users.create("ada", ["clinician"], PASSWORD, one_time=True)
    won: list[int] = []
    gate = threading.Barrier(4)

    def login(number: int) -> None:
        gate.wait()
        try:
            users.authenticate("ada", PASSWORD, f"new password {number:04}")
            won.append(number)
        except SealwardError:
            pass

    threads = [threading.Thread(target=login, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    users.authenticate("ada", f"new password {won[0]:04}")


def test_names_and_ids_are_never_used_again(users: UserDirectory) -> None:
    made = users.create("ada", ["clinician"], PASSWORD, one_time=False)
    users.disable("ada")
    again = lambda: users.create("ada", ["operator"], PASSWORD, one_time=False)  # noqa: E731
    assert reason(again) is Reason.ALREADY_EXISTS
    assert users.create("bob", ["clinician"], PASSWORD, one_time=False).user_id != made.user_id
    assert [user.name for user in users.all()] == ["ada", "bob"]
    assert reason(lambda: users.disable("eve")) is Reason.NOT_FOUND


@pytest.mark.parametrize("name", ["", "Ada", "1a", "a/b", "a" * 65, "a\n", "ä"])
def test_names_out_of_form(users: UserDirectory, name: str) -> None:
    make = lambda: users.create(name, ["clinician"], PASSWORD, one_time=False)  # noqa: E731
    assert reason(make) is Reason.FIELD_INVALID


@pytest.mark.parametrize("roles", [[], ["root"], ["clinician", "clinician"]])
def test_roles_out_of_form(users: UserDirectory, roles: list[str]) -> None:
    make = lambda: users.create("ada", roles, PASSWORD, one_time=False)  # noqa: E731
    assert reason(make) is Reason.FIELD_INVALID


def test_users_survive_a_restart_and_no_password_is_on_disk(
    tmp_path: Path, users: UserDirectory
) -> None:
    users.create("ada", ["clinician"], PASSWORD, one_time=False)
    again = UserDirectory(tmp_path / "users.db", Passwords(CHEAP), LoginThrottle(Clock()))
    assert again.authenticate("ada", PASSWORD).name == "ada"
    again.close()
    assert (tmp_path / "users.db").stat().st_mode & 0o077 == 0
    for file in tmp_path.iterdir():
        assert PASSWORD.encode() not in file.read_bytes()


def test_a_damaged_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "users.db").write_bytes(os.urandom(8192))
    with pytest.raises(StartupError):
        UserDirectory(tmp_path / "users.db", Passwords(CHEAP), LoginThrottle(Clock()))


def test_the_first_start_makes_one_administrator(tmp_path: Path, users: UserDirectory) -> None:
    file = tmp_path / "first"
    assert users.bootstrap(file)
    assert file.stat().st_mode & 0o777 == 0o600
    password = file.read_text().strip()
    (admin,) = users.all()
    assert (admin.name, admin.roles, admin.one_time) == ("admin", ("security-admin",), True)
    users.authenticate("admin", password, NEW)
    file.unlink()
    assert not users.bootstrap(file)
    assert not file.exists()


def test_failed_logins_have_to_wait_and_a_success_clears_them(
    users: UserDirectory, clock: Clock
) -> None:
    users.create("ada", ["clinician"], PASSWORD, one_time=False)
    for _ in range(5):
        assert reason(lambda: users.authenticate("ada", "wrong" * 3)) is Reason.LOGIN_FAILED
    with pytest.raises(SealwardError) as caught:
        users.authenticate("ada", PASSWORD)
    assert caught.value.reason is Reason.RATE_LIMITED
    assert caught.value.retry_after == pytest.approx(1.0)
    users.create("bob", ["clinician"], PASSWORD, one_time=False)
    users.authenticate("bob", PASSWORD)
    clock.now += 1.5
    users.authenticate("ada", PASSWORD)
    assert reason(lambda: users.authenticate("ada", "wrong" * 3)) is Reason.LOGIN_FAILED
    users.authenticate("ada", PASSWORD)


def test_the_wait_doubles_up_to_a_minute_and_memory_is_bounded(clock: Clock) -> None:
    throttle = LoginThrottle(clock, capacity=3)
    waits = []
    for _ in range(14):
        throttle.failed("ada")
        try:
            throttle.check("ada")
        except SealwardError as error:
            waits.append(error.retry_after)
        clock.now += 61
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60, 60])
    for name in ("b", "c", "d"):
        throttle.failed(name)
    assert "ada" not in throttle._failed


def test_more_logins_than_the_queue_takes_are_refused_at_once() -> None:
    passwords = Passwords(CHEAP, threads=1, queue=1)
    entered, release = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        release.wait(10)

    first = threading.Thread(target=lambda: passwords._run(block))
    first.start()
    assert entered.wait(10)
    second = threading.Thread(target=lambda: passwords.hash(PASSWORD))
    second.start()
    while getattr(passwords._room, "_value"):  # noqa: B009 - until the second one waits
        pass
    assert reason(lambda: passwords.hash(PASSWORD)) is Reason.OVERLOADED
    release.set()
    first.join()
    second.join()
    assert passwords.verify(passwords.hash(PASSWORD), PASSWORD)
    passwords.close()


def session(user: User, session_id: str = "5" * 32) -> Session:
    return Session(
        session_id, user.user_id, user.name, user.roles, b"s" * 32, 0, 2**31, user.generation
    )


def test_ended_sessions_stay_ended(users: UserDirectory, tmp_path: Path, clock: Clock) -> None:
    ada = users.create("ada", ["clinician"], PASSWORD, one_time=False)
    one, two = session(ada), session(ada, "6" * 32)
    assert users.live(one)
    assert not users.live(session(replace(ada, user_id="0" * 32)))
    users.end_session(one.session_id, 2**31)
    assert not users.live(one)
    assert users.live(two)
    users.end_sessions(ada.user_id)
    assert not users.live(two)
    again = users.get("ada")
    assert again is not None
    assert users.live(session(again, "7" * 32))
    passwords = Passwords(CHEAP)
    reopened = UserDirectory(tmp_path / "users.db", passwords, LoginThrottle(clock))
    assert [reopened.live(s) for s in (one, two)] == [False, False]
    reopened.close()
    passwords.close()
    users.disable("ada")
    assert not users.live(session(again, "7" * 32))


def test_ended_sessions_are_forgotten_when_they_would_have_expired(users: UserDirectory) -> None:
    ada = users.create("ada", ["clinician"], PASSWORD, one_time=False)
    users.end_session("5" * 32, 1)
    users.end_session("6" * 32, 2**31)
    assert users.live(session(ada, "5" * 32))
    assert not users.live(session(ada, "6" * 32))


def test_a_directory_from_before_sessions_had_generations_opens(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as old, old:
        old.execute(
            "CREATE TABLE user (user_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
            " roles TEXT NOT NULL, secret TEXT NOT NULL, one_time INTEGER NOT NULL,"
            " disabled INTEGER NOT NULL DEFAULT 0, created INTEGER NOT NULL) STRICT"
        )
        old.execute("INSERT INTO user VALUES ('u1', 'ada', '[\"clinician\"]', 'x', 0, 0, 7)")
    passwords = Passwords(CHEAP)
    directory = UserDirectory(path, passwords, LoginThrottle(clock))
    ada = directory.get("ada")
    assert ada == User("u1", "ada", ("clinician",), False, False, 7)
    assert directory.live(session(ada))
    directory.close()
    passwords.close()
