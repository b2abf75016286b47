"""The wrapped keys of all logs move on to newer key-encryption keys: grown, ended, archived."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.logging import get_logger
from sealward.kit.reasons import Reason
from services.audit import retention as retentions
from services.audit.backend import FileBackend, Place
from services.audit.holds import Holds
from services.audit.logkeys import rotate as rotate_log_key
from services.audit.retention import Retention, SteadyClock
from services.audit.rollover import announced
from services.audit.store import LogStore
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


def test_an_archive_is_archived_again(turning: Turning) -> None:
    past = turning.logs.shards.of("default").past[-1]
    before = json.loads(past.place.manifest.read_text())["files"]
    turning.keys.rotate()
    turning.move()
    after = json.loads(past.place.manifest.read_text())["files"]
    assert past.state == "archived"
    assert {n for n in before if before[n] != after[n]} == {"log.db"}
    assert before.keys() == after.keys()
    for name, digest in after.items():
        path = past.place.folder / name
        assert sha256(path.read_bytes()).hexdigest() == digest
        assert path.stat().st_mode & 0o777 == 0o400
    assert sorted(p.name for p in past.place.folder.glob("*manifest*")) == ["manifest.json"]


def test_an_archive_that_was_changed_is_not_listed_anew(turning: Turning) -> None:
    """Rewrapping must not bless what somebody did to an archive."""
    past = turning.logs.shards.of("default").past[-1]
    manifest = past.place.manifest.read_bytes()
    path = past.place.folder / "log.db"
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(bytes(4096))
    turning.keys.rotate()
    with pytest.raises(SealwardError) as caught:
        turning.move()
    assert caught.value.reason is Reason.LOG_STATE
    assert past.origin in caught.value.message
    assert past.place.manifest.read_bytes() == manifest
    with pytest.raises(SealwardError):
        turning.keys.retire()


class DiedError(BaseException):
    """Nothing after this happens."""


class CountingBackend(FileBackend):
    """Lets so many steps of what is written happen, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise DiedError

    def store(self, place: Place, *, sealed: bool = False) -> LogStore:
        self.step()
        store = super().store(place, sealed=sealed)
        for name in ("put", "seal"):
            setattr(store, name, self.counted(getattr(store, name)))
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
            patch.setattr(retentions, "_sync", backend.counted(retentions._sync))
            patch.setattr(retentions, "_write", backend.counted(retentions._write))
            for name in ("rename", "unlink", "chmod"):
                patch.setattr(Path, name, backend.counted(getattr(Path, name)))
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
    turning.retention.purge(past)
    turning.keys.rotate()
    turning.move()
    turning.keys.retire()
    assert past.state == "purged"
    assert not any(place.startswith(past.origin + "#") for place in turning.places())
    assert past.store.names("segment/") == []


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
