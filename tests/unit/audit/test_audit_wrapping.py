"""The wrapped keys of all logs move on to newer key-encryption keys: grown, ended, archived."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from services.audit import rewrapped
from services.audit.backend import FileBackend, Place
from services.audit.holds import Holds
from services.audit.logkeys import rotate as rotate_log_key
from services.audit.retention import Retention, SteadyClock
from services.audit.rewrapped import REWRAPPED
from services.audit.rollover import announced
from services.audit.store import LogStore, StoreBrokenError
from services.audit.wrapping import LogKeyHolder
from tests.support.audit_shards import Clock, Logs
from tests.support.audit_suite import entry_bytes
from tests.support.local_keys import LocalKeys, versions

WHO = "service/audit"
TENANTS = ("default", "north")


class Turning:
    """Logs of two tenants over real keys, and the holder of their wrapped keys."""

    def __init__(
        self, folder: Path, keys: LocalKeys, tenants: tuple[str, ...] = TENANTS, **options: Any
    ) -> None:
        self.keys = keys
        self.ring = keys.ring()
        self.logs = Logs(folder, self.ring, Clock(), tenants, **options)  # type: ignore[arg-type]
        clock = self.logs.clock
        self.retention = Retention(
            self.logs.shards,
            self.logs.parts.backend,
            Holds(self.logs.shards),
            get_logger("test", io.StringIO()),
            years=10,
            clock=SteadyClock(clock, Clock(0)),
        )
        self.retention.resume()
        self.changes = threading.Lock()
        self.holder = LogKeyHolder(
            self.logs.rollover,
            self.retention,
            self.logs.parts.wrapping,
            self.changes,
            self.ring.moved,
        )

    def move(self) -> dict[str, Any]:
        return self.keys.move(self.holder, WHO)

    def places(self) -> list[str]:
        found = []
        for tenant, purpose in self.keys.provider.names():
            found += self.holder.places(tenant, purpose)
        return found

    def wrapped(self) -> list[bytes]:
        found = []
        for place in self.places():
            origin, _, name = place.partition("#")
            value = self.logs.shards.by_origin(origin).store.get(name)
            assert value is not None
            found.append(value)
        return found

    def all_readable(self) -> int:
        """Open every sealed entry of every log; return how many."""
        count = 0
        for shard in self.logs.shards.everything():
            if shard.state == "purged":
                continue
            for leaf in shard.store.leaves(0, shard.log.head[0]):
                if leaf[0] == 1:
                    assert shard.segments.open(leaf[:49], leaf[49:])
                    count += 1
        return count

    def close(self) -> None:
        self.logs.close()
        self.ring.close()


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[LocalKeys]:
    made = LocalKeys(tmp_path / "keys")
    yield made
    made.close()


def filled(folder: Path, keys: LocalKeys, **options: Any) -> Turning:
    """One log that grows for each tenant, one that has ended, one that is archived."""
    made = Turning(folder, keys, **options)
    for _ in range(2):
        for tenant in TENANTS:
            made.logs.append(*(entry_bytes(tenant=tenant) for _ in range(3)))
        made.logs.rollover.turn("default")
    for tenant in TENANTS:
        made.logs.append(*(entry_bytes(tenant=tenant) for _ in range(3)))
    made.retention.archive(made.logs.shards.of("default").past[-1])
    rotate_log_key(made.logs.shards.current("default"), made.ring, made.logs.clock.now + 1)
    made.logs.rollover.announce("default")
    return made


@pytest.fixture
def turning(tmp_path: Path, keys: LocalKeys) -> Iterator[Turning]:
    made = filled(tmp_path / "audit", keys)
    yield made
    made.close()


def test_every_log_is_looked_through(turning: Turning) -> None:
    keys = turning.keys
    count = turning.all_readable()
    assert count == 18
    past = turning.logs.shards.of("default").past
    assert [shard.state for shard in past] == ["frozen", "archived"]
    names = [place.partition("#")[2] for place in turning.places()]
    # Two logs that grow, two that ended: an index key and signing keys each, and those of a log to
    # come, in both that are announced or ended.
    assert sum(name == "index/wrapped" for name in names) == 4
    assert sum(name.startswith("segment/") for name in names) >= 4
    assert "signing/2/wrapped" in names
    assert any(name.startswith("next/") and name.endswith("index/wrapped") for name in names)
    for version in (2, 3):
        keys.rotate()
        answers = turning.move()
        assert all(answer.confirmed for answer in answers.values())
        assert {name.partition("/")[2] for name in answers} == {
            "audit-index",
            "audit-patient",
            "audit-segment",
            "log-signing",
        }
        assert versions(keys, turning.wrapped()) == {version}
        keys.retire()
        assert turning.all_readable() == count


def test_a_restart_opens_everything_under_the_new_version(tmp_path: Path, keys: LocalKeys) -> None:
    made = filled(tmp_path / "audit", keys)
    made.logs.rollover.announce("north")
    keys.rotate()
    made.move()
    keys.retire()
    vkeys = announced(made.logs.shards.current("default").store)
    made.close()
    again = Turning(tmp_path / "audit", keys)
    try:
        assert again.all_readable() == 18
        again.logs.append(entry_bytes())
        # The log that was announced has the key that was announced.
        successor = again.logs.rollover.turn("default")
        assert successor.vkeys[0] in vkeys
        again.logs.append(entry_bytes())
        assert again.all_readable() == 20
    finally:
        again.close()


def test_an_archive_stays_what_it_is(turning: Turning) -> None:
    """Its files are listed with their digests, and copies of them are elsewhere."""
    past = turning.logs.shards.of("default").past[-1]
    before = {path: path.read_bytes() for path in past.place.folder.rglob("*") if path.is_file()}
    for _ in range(2):
        turning.keys.rotate()
        assert turning.move()["default/audit-segment"].confirmed
        turning.keys.retire()
    assert past.state == "archived"
    after = {path: path.read_bytes() for path in past.place.folder.rglob("*") if path.is_file()}
    (new,) = after.keys() - before.keys()
    assert new.name == REWRAPPED
    assert new.stat().st_mode & 0o777 == 0o600
    assert {path: after[path] for path in before} == before
    for name, digest in json.loads(past.place.manifest.read_text())["files"].items():
        assert sha256((past.place.folder / name).read_bytes()).hexdigest() == digest
    assert turning.all_readable() == 18


def test_who_reads_an_archive_meanwhile_notices_nothing(turning: Turning) -> None:
    """Ids of the last day are looked up in ended logs with every call."""
    past = turning.logs.shards.of("default").past[-1]
    leaf = next(leaf for leaf in past.store.leaves(0, past.log.head[0]) if leaf[0] == 1)
    stop, trouble, reads = threading.Event(), [], [0]

    def read() -> None:
        while not stop.is_set():
            try:
                assert past.store.find([leaf[1:17]])
                assert past.segments.open(leaf[:49], leaf[49:])
            except Exception as error:  # noqa: BLE001 - any is the finding
                trouble.append(error)
            reads[0] += 1

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        turning.keys.rotate()
        turning.move()
        turning.keys.retire()
    stop.set()
    reader.join(20)
    assert not trouble
    assert reads[0] > 3


def test_a_damaged_file_of_moved_keys_is_told(turning: Turning) -> None:
    past = turning.logs.shards.of("default").past[-1]
    turning.keys.rotate()
    turning.move()
    path = past.place.folder / REWRAPPED
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    with pytest.raises(StoreBrokenError, match="restore it"):
        past.store.get("index/wrapped")
    with pytest.raises(SealwardError) as caught:
        turning.move()
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    path.write_bytes(good)
    assert turning.move()["default/audit-segment"].confirmed
    turning.keys.retire()
    assert turning.all_readable() == 18


class DiedError(BaseException):
    """Nothing after this happens."""


class CountingBackend(FileBackend):
    """Lets so many steps of what is written happen, and no more, in the thread that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        # Patients' keys are made ahead by a thread of their own, at any time.
        self._thread = threading.current_thread()

    def step(self) -> None:
        if self.left is not None and threading.current_thread() is self._thread:
            self.left -= 1
            if self.left < 0:
                raise DiedError

    def store(self, place: Place, *, sealed: bool = False) -> LogStore:
        self.step()
        store = super().store(place, sealed=sealed)
        if not sealed:
            store.put = self.counted(store.put)  # type: ignore[method-assign]
        return store

    def counted(self, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.step()
            return real(*arguments, **named)

        return call


def test_dying_at_any_step_of_a_pass_loses_nothing(
    tmp_path: Path, keys: LocalKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path / "audit", keys)
    made.close()
    steps, died = 0, True
    while died:
        backend = CountingBackend()
        made = Turning(tmp_path / "audit", keys, backend=backend)
        keys.rotate()
        backend.left, died = steps, False
        steps += 1
        with monkeypatch.context() as patch:
            for name in ("open", "fsync"):
                patch.setattr(rewrapped.os, name, backend.counted(getattr(os, name)))
            patch.setattr(Path, "replace", backend.counted(Path.replace))
            try:
                made.move()
            except DiedError:
                died = True
        backend.left = None
        # The process is gone; what it held is released so that the next one may open it.
        made.close()
        again = Turning(tmp_path / "audit", keys)
        try:
            assert again.all_readable() == 18, steps
            assert all(answer.confirmed for answer in again.move().values())
            keys.retire()
            assert again.all_readable() == 18, steps
            assert again.logs.shards.of("default").past[-1].state == "archived"
        finally:
            again.close()
    assert steps > 12


def test_a_purged_log_stays_purged(turning: Turning) -> None:
    past = turning.logs.shards.of("default").past[-1]
    turning.keys.rotate()
    turning.move()
    assert (past.place.folder / REWRAPPED).exists()
    turning.retention.purge(past)
    turning.keys.rotate()
    turning.move()
    turning.keys.retire()
    assert past.state == "purged"
    assert not any(place.startswith(past.origin + "#") for place in turning.places())
    assert past.store.names("segment/") == []
    assert not (past.place.folder / REWRAPPED).exists()


def test_logs_of_a_tenant_that_is_not_configured_keep_their_key(
    tmp_path: Path, keys: LocalKeys
) -> None:
    """Nobody looks through logs that are not open, so nobody says that they need nothing."""
    made = filled(tmp_path / "audit", keys)
    made.close()
    again = Turning(tmp_path / "audit", keys, tenants=("default",))
    try:
        keys.rotate()
        answers = again.move()
        for name, answer in answers.items():
            assert answer.confirmed is name.startswith("default/")
        assert list(answers["north/audit-segment"].failed) == [
            "north: not in SEALWARD_AUDIT_TENANTS"
        ]
        with pytest.raises(SealwardError) as caught:
            keys.retire()
        assert caught.value.reason is Reason.KEY_IN_USE
    finally:
        again.close()


def test_a_turn_in_the_middle_of_a_pass_leaves_nothing_behind(
    turning: Turning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are copied into the successor's store between the list and its end."""
    turning.keys.rotate()
    holder, turned = turning.holder, False
    real = holder.rewrap

    def rewrap(places: Any, call: Any) -> Any:
        nonlocal turned
        if not turned:
            turned = True
            turning.logs.rollover.turn("default")
        return real(places, call)

    monkeypatch.setattr(holder, "rewrap", rewrap)
    turning.move()
    assert turned
    assert versions(turning.keys, turning.wrapped()) == {2}
    turning.keys.retire()
    assert turning.all_readable() == 18


def test_while_a_log_is_changed_a_pass_waits_and_then_says_so(
    turning: Turning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.audit.wrapping._CHANGE_SECONDS", 0.01)
    turning.keys.rotate()
    with turning.changes, pytest.raises(SealwardError) as caught:
        turning.move()
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert turning.move()


def test_a_segment_that_begins_meanwhile_is_under_the_new_version(turning: Turning) -> None:
    """Between making a key and keeping it nobody looks what there is."""
    turning.keys.rotate()
    shard = turning.logs.shards.current("default")
    made, go = threading.Event(), threading.Event()
    ring = turning.ring
    real = ring.create

    def slow(context: Any, **named: Any) -> Any:
        branch = real(context, **named)
        made.set()
        go.wait(20)
        return branch

    ring.create = slow  # type: ignore[method-assign]
    begun = threading.Thread(target=shard.segments.begin)
    begun.start()
    assert made.wait(20)
    listed: list[int] = []
    listing = threading.Thread(
        target=lambda: listed.append(len(turning.holder.places("default", "audit-segment")))
    )
    listing.start()
    before = len(shard.store.names("segment/"))
    assert not listed
    go.set()
    begun.join(20)
    listing.join(20)
    assert len(shard.store.names("segment/")) == before + 1
    (found,) = listed
    ring.create = real  # type: ignore[method-assign]
    assert found == len(turning.holder.places("default", "audit-segment"))
