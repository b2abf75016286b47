"""Password hashes in a process of their own: the same answers, and what happens when it dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.hashing import HashProcess, LocalHasher
from services.gateway.passwords import Passwords

PASSWORD = "a long enough pässword\nof two lines"


@pytest.fixture
def hasher() -> Iterator[HashProcess]:
    made = HashProcess()
    yield made
    made.close()


def test_it_computes_what_this_process_would(hasher: HashProcess) -> None:
    secret = hasher.hash(PASSWORD)
    assert LocalHasher().verify(secret, PASSWORD)
    assert hasher.verify(LocalHasher().hash(PASSWORD), PASSWORD)
    assert not hasher.verify(secret, PASSWORD + "!")
    assert not hasher.verify("no hash at all", PASSWORD)
    passwords = Passwords(hasher=hasher)
    assert not passwords.verify(None, PASSWORD)
    assert passwords.verify(secret, PASSWORD)
    assert not passwords.outdated(secret)
    passwords.close()


def test_it_gives_way_and_no_secret_is_on_its_command_line(hasher: HashProcess) -> None:
    hasher.hash(PASSWORD)
    assert hasher._process is not None
    pid = hasher._process.pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == 10
    assert b"services.gateway.hash_helper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"long enough" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_one_that_dies_lets_nobody_in_and_another_takes_its_place(hasher: HashProcess) -> None:
    secret = hasher.hash(PASSWORD)
    assert hasher._process is not None
    hasher._process.kill()
    hasher._process.wait()
    assert hasher.verify(secret, PASSWORD)
    # In the middle of a hash: as if it had taken too long.
    hasher._seconds = 0.0

    def hopeless() -> None:
        for _ in range(50):
            hasher.verify(secret, PASSWORD)

    with pytest.raises(SealwardError) as caught:
        hopeless()
    assert (caught.value.reason, caught.value.retry_after) == (Reason.OVERLOADED, 1.0)
    hasher._seconds = 30.0
    assert hasher.verify(secret, PASSWORD)


def test_it_is_gone_when_it_is_closed(hasher: HashProcess) -> None:
    hasher.hash(PASSWORD)
    assert hasher._process is not None
    pid = hasher._process.pid
    hasher.close()
    assert not Path(f"/proc/{pid}").exists()


def test_it_rests_between_logins_that_queue_and_not_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []
    passwords = Passwords(queue=8, share=0.25)
    monkeypatch.setattr(passwords._closing, "wait", rests.append)
    passwords._run(lambda: None)
    passwords._run(lambda: None)
    assert rests == []
    passwords._last, passwords._waiting = 0.25, 4
    passwords._run(lambda: None)
    passwords._last = 5.0
    passwords._run(lambda: None)
    assert rests == [0.75, 1.0]
    passwords.close()
