"""Keeps logs as long as they have to be kept, and destroys their keys when that is over.

A log that has ended is archived: its files become read-only and get a manifest of their SHA-256.
After the retention period it may be purged: the wrapped keys of its entries, its index key and its
rows are deleted, in the store, its journal and its free pages. Nobody opens its entries any more;
every proof still verifies. The key-encryption key is the tenant's and stays, so the wrapped keys in
a copy made elsewhere still open: a copy of `log.db` has to be destroyed by who made it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import structlog

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.backend import Backend, Place
from services.audit.embedded_store import ENTRIES
from services.audit.holds import Holds
from services.audit.index import IndexFailedError, Query
from services.audit.publisher import Publisher
from services.audit.shard import STATE, PastShard
from services.audit.shards import Shards
from services.audit.store import LogStore, StoreError

FLOOR_YEARS = 6
"""45 CFR 164.316(b)(2)(i): nothing is purged before."""

DAY = 24 * 3600 * 1_000_000_000
# Rounded up, so that no year is short of a leap day.
_YEAR = 366 * DAY
_CHUNK = 1 << 20
_STORE = "log.db"
_PURGING, _PURGED = b"purging", b"purged"
# What opens entries, what signs, and the copies that a log keeps of its successor's keys. The list
# of verifier keys stays: without it nobody could verify.
_SECRETS = ("segment/", "index/", "patient/", "signing/wrapped", "signing/sealed", "next/")


class SteadyClock:
    """The wall clock, and whether it went as far as the time that has passed since the start."""

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        passed: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._wall, self._passed = wall, passed
        self._start = wall() - passed()

    def __call__(self) -> int:
        """Nanoseconds since the epoch."""
        return self._wall()

    def steady(self) -> bool:
        """False when the clock was set by more than a day since the start."""
        return abs(self._wall() - self._passed() - self._start) <= DAY


class Retention:
    """Archives and purges. One at a time; thread-safe by the lock of its caller."""

    def __init__(
        self,
        shards: Shards,
        backend: Backend,
        holds: Holds,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        years: int,
        clock: SteadyClock,
    ) -> None:
        self._shards = shards
        self._backend = backend
        self._holds = holds
        self._logger = logger
        self._years = max(years, FLOOR_YEARS)
        self._clock = clock

    def until(self, shard: PastShard) -> int:
        """Return until when a log is kept at least, in nanoseconds since the epoch.

        Counted from its final checkpoint and from the end of the year in its name, whichever is
        later: a clock that was wrong when the log ended does not shorten it.
        """
        year_end = int(dt.datetime(shard.name.year + 1, 1, 1, tzinfo=dt.UTC).timestamp() * 1e9)
        return max(shard.ended, year_end) + self._years * _YEAR

    def next_purge(self) -> int | None:
        """Return when the first log may be purged (nanoseconds since the epoch), None for never."""
        times = [
            self.until(shard)
            for tenant in self._shards.tenants
            for shard in self._shards.of(tenant).past
            if shard.state != "purged"
        ]
        return min(times, default=None)

    def resume(self) -> None:
        """Complete the purges that were begun and not ended, as after a power cut."""
        for tenant in self._shards.tenants:
            for shard in self._shards.of(tenant).past:
                if shard.stored_state == _PURGING.decode():
                    self._destroy(shard)

    # --- archive --------------------------------------------------------------------------------

    def check_archive(self, shard: PastShard) -> None:
        """Raise LOG_STATE unless a log can be archived."""
        if shard.state != "frozen":
            raise SealwardError(Reason.LOG_STATE, f"the log is {shard.state}, not frozen")

    def archive(self, shard: PastShard) -> dict[str, str]:
        """Make the files of a log read-only and list them; return path → SHA-256.

        Raise SealwardError.
        """
        self.check_archive(shard)
        try:
            Publisher(shard.log, shard.store, shard.place.published, self._logger).rebuild()
            shard.seal()
            return self._list(shard.place)
        except (StoreError, OSError) as error:
            raise _failed(error) from None
        finally:
            shard.refresh()

    def rewrap(self, shard: PastShard, values: Sequence[tuple[str, bytes]]) -> None:
        """Replace wrapped keys of a log that has ended; the files of an archive stay as they are.

        Raise SealwardError.
        """
        try:
            if shard.state == "frozen":
                shard.store.put(values)
            else:
                self._backend.rewrap(shard.place, values)
        except (StoreError, OSError) as error:
            raise _failed(error) from None

    def _seal(self, place: Place) -> dict[str, str]:
        self._backend.store(place).seal()
        return self._list(place)

    def _list(self, place: Place) -> dict[str, str]:
        """List the files of a place whose store is sealed, and make them read-only."""
        paths = list(_archived(place))
        files = {path.relative_to(place.folder).as_posix(): _digest(path) for path in paths}
        # From here on the store is opened as one that nobody writes: only then may it be closed.
        _write(place.manifest, _manifest(files))
        for path in paths:
            path.chmod(0o400)
        if place.published.is_dir():
            for folder in (*place.published.rglob("*"), place.published):
                if folder.is_dir():
                    folder.chmod(0o500)
        return files

    def _unseal(self, place: Place) -> None:
        for path in (place.folder / _STORE, place.folder / ENTRIES, place.manifest):
            if path.exists():
                path.chmod(0o600)
        place.manifest.unlink(missing_ok=True)

    # --- purge ----------------------------------------------------------------------------------

    def check_purge(self, shard: PastShard) -> None:
        """Raise unless the keys of a log may be destroyed now.

        LOG_STATE: it is not archived, or an older one is still there; LOG_RETAINED: its time is
        not over, the clock cannot be believed, or a hold covers something in it. Before the holds
        are looked up the index is made anew from the log: what a hold covers must not hide in it.
        """
        if shard.state != "archived":
            raise SealwardError(Reason.LOG_STATE, f"the log is {shard.state}, not archived")
        older = [
            other
            for other in self._shards.of(shard.tenant).past
            if other.ended < shard.ended and other.state != "purged"
        ]
        if older:
            raise SealwardError(Reason.LOG_STATE, "an older log of the tenant is purged first")
        if not self._clock.steady():
            raise _retained("the clock was set by more than a day: restart with the right time")
        now = self._clock()
        if now < self.until(shard):
            raise _retained("its retention is not over")
        shard.indexer.rebuild()
        try:
            young = shard.index.rows(Query(since=now - self._years * _YEAR, limit=1))
        except IndexFailedError:
            raise _failed(None) from None
        if young:
            raise _retained("an entry in it is younger than the retention period")
        holds = self._holds.covering(shard)
        if holds:
            raise _retained(f"{len(holds)} legal hold(s) cover something in it")

    def purge(self, shard: PastShard) -> None:
        """Destroy the keys of a log. `check_purge` and the record of it come before."""
        try:
            shard.close()
            self._unseal(shard.place)
            store = self._backend.store(shard.place)
            try:
                store.put([(STATE, _PURGING)])
            finally:
                store.close()
            self._destroy(shard)
        except (StoreError, OSError) as error:
            raise _failed(error) from None

    def _destroy(self, shard: PastShard) -> None:
        shard.close()
        self._unseal(shard.place)
        self._backend.drop_index(shard.place)
        store = self._backend.store(shard.place)
        try:
            for prefix in (*_SECRETS, *_later_keys(store)):
                store.forget(prefix)
            self._backend.forget_rewrapped(shard.place)
            store.put([(STATE, _PURGED)])
        finally:
            store.close()
        self._seal(shard.place)
        shard.refresh()


def _later_keys(store: LogStore) -> list[str]:
    """Return the names of the signing keys after the first: `signing/<n>/…`."""
    names = []
    number = 2
    while store.get(f"signing/{number}/wrapped") is not None:
        names += [f"signing/{number}/wrapped", f"signing/{number}/sealed"]
        number += 1
    return names


def _archived(place: Place) -> Iterator[Path]:
    """Yield the files that an archive consists of; the index is derived and stays outside."""
    for path in (place.folder / _STORE, place.folder / ENTRIES, place.vkey):
        if path.exists():
            yield path
    yield from sorted(path for path in place.published.rglob("*") if path.is_file())


def _manifest(files: Mapping[str, str]) -> bytes:
    return json.dumps({"files": files}, indent=1, sort_keys=True).encode()


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    temporary.replace(path)


def _retained(why: str) -> SealwardError:
    return SealwardError(Reason.LOG_RETAINED, f"the log has to be kept: {why}", field="origin")


def _failed(_error: BaseException | None) -> SealwardError:
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "the files of the log cannot be changed", retry_after=1.0
    )
