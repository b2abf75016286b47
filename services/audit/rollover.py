"""Opens every tenant's logs, and lets one log be followed by the next.

A turn, step by step; a process that dies between any two of them is completed by the next start:

1. *announced*: the successor's keys are made and kept in the log that will end; its verifier key
   goes into the file of keys, so that clients know it before they meet it;
2. *meant*: which log follows, and the ids of the two entries below, are written down;
3. *ended*: the last entry, in clear, names the successor and its key. Nothing is appended after it;
4. *final*: the checkpoint over it is kept as the final one, with what proofs are made from;
5. *made*: the successor begins, in a place of its own, with that checkpoint as its first entry;
6. *moved*: where the current log has a fixed place, the one leaves it and the other takes it.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from sealward.tlog.logchange import LogFinal, LogSuccessor, change_leaf
from sealward.tlog.merkle import leaf_hash
from services.audit.backend import Place, Places
from services.audit.entry import DEFAULT_TENANT
from services.audit.logkeys import expire, resume
from services.audit.origin import (
    INDEX_KEY,
    KEYS,
    ORIGIN,
    KeyState,
    LogName,
    key_names,
    new_log_keys,
    new_name,
    vkey_lines,
)
from services.audit.publisher import write_vkey
from services.audit.shard import (
    FINAL,
    FINAL_COSE,
    FINAL_ROOTS,
    FINAL_TIME,
    LiveShard,
    Parts,
    PastShard,
    tile_roots,
)
from services.audit.shards import Shards, TenantLogs
from services.audit.store import EventKey, Head, LogStore, StoreError

PREDECESSOR = "predecessor"
_TURN = "turn"
# The labels whose keys are announced; their values are `next/<label>/<name>`.
NEXT = "next"
_RETRY_SECONDS = 5.0
_SETTLE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was meant: the successor's label and the ids of the entries that say so."""

    label: str
    final: bytes
    successor: bytes

    def encode(self) -> bytes:
        values = {
            "label": self.label, "final": self.final.hex(), "successor": self.successor.hex(),
        }  # fmt: skip
        return json.dumps(values).encode()

    @classmethod
    def of(cls, store: LogStore) -> _Turn | None:
        stored = store.get(_TURN)
        if stored is None:
            return None
        try:
            values = json.loads(stored)
            ids = (bytes.fromhex(values[name]) for name in ("final", "successor"))
            return cls(values["label"], *ids)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StartupError("what was written about the log's end cannot be read") from None


class Rollover:
    """The life of the logs: open, turn, close. `steady` = the clock can be believed.

    `before_turn` records a turn that the calendar makes, before it takes effect; what it raises
    puts the turn off.
    """

    def __init__(
        self,
        parts: Parts,
        places: Places,
        clock: Callable[[], int] = time.time_ns,
        *,
        announce_days: int = 14,
        steady: Callable[[], bool] = lambda: True,
        before_turn: Callable[[LiveShard, str], None] = lambda _shard, _origin: None,
        on_turned: Callable[[LiveShard], None] = lambda _shard: None,
    ) -> None:
        self._parts = parts
        self._places = places
        self._clock = clock
        self._announce_days = announce_days
        self._steady = steady
        self.before_turn = before_turn
        self._on_turned = on_turned
        self._shards: Shards | None = None
        self._started = False
        self._lock = threading.Lock()
        # Tenants whose turn was begun and is not done, and when to try again.
        self._turning: set[str] = set()
        self._again = 0.0

    @property
    def places(self) -> Places:
        """Where logs lie."""
        return self._places

    @property
    def shards(self) -> Shards:
        """All logs; after `open`."""
        if self._shards is None:
            raise ValueError("the logs are not open")
        return self._shards

    @property
    def today(self) -> dt.datetime:
        """The time (UTC)."""
        return dt.datetime.fromtimestamp(self._clock() / 1e9, dt.UTC)

    # --- open and close -----------------------------------------------------------------------

    def open(self, tenants: Sequence[str]) -> Shards:
        """Open the logs of the tenants, making what is not there; raise StartupError.

        `default` comes first: the others' names have its deployment id. SealwardError
        KEYS_UNAVAILABLE when the keys service does not answer: then nothing is open.
        """
        opened: dict[str, TenantLogs] = {}
        try:
            for tenant in tenants:
                opened[tenant] = self._open(tenant, opened)
        except Exception:
            for logs in opened.values():
                _close(logs)
            raise
        self._shards = Shards(opened)
        self.write_vkeys()
        return self._shards

    def start(self) -> None:
        """Begin to publish and to index."""
        self._started = True
        for tenant in self.shards.tenants:
            self.shards.current(tenant).start()

    def stop(self, timeout: float) -> None:
        """Publish and index what is left, and release everything."""
        ends = time.monotonic() + timeout
        for tenant in self.shards.tenants:
            logs = self.shards.of(tenant)
            logs.current.stop(max(1.0, ends - time.monotonic()))
            _close(logs)

    def tick(self) -> None:
        """Do what stores, indexes and logs need now and then, and turn what is to be turned.

        Raise StoreError when a store has failed for good.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            for tenant in self.shards.tenants:
                if tenant not in self._turning:
                    shard = self.shards.current(tenant)
                    shard.store.maintain()
                    shard.index.maintain()
                    shard.log.probe()
            if time.monotonic() >= self._again:
                self._by_calendar()
        finally:
            self._lock.release()

    def write_vkeys(self) -> None:
        """Write the files of verifier keys: each log's own, and all of them in the first place.

        The first line is the key that signs now. After it come those that are announced, those
        that signed before, and those of other logs: a client keeps one file and meets all of them.
        """
        lines: dict[str, None] = {}
        for tenant in self.shards.tenants:
            logs = self.shards.of(tenant)
            own = [*logs.current.vkeys, *announced(logs.current.store)]
            if tenant != DEFAULT_TENANT:
                write_vkey(logs.current.place.vkey, "\n".join(own))
            lines |= dict.fromkeys(own)
        for tenant in self.shards.tenants:
            for past in self.shards.of(tenant).past:
                lines |= dict.fromkeys(past.vkeys)
        write_vkey(self._places.first.vkey, "\n".join(lines))

    @contextmanager
    def still(self) -> Iterator[None]:
        """No log turns inside the block, and nothing that the clock asks for is done."""
        with self._lock:
            yield

    # --- turn -----------------------------------------------------------------------------------

    def announce(self, tenant: str, label: str = "") -> str:
        """Make the keys of the log that will follow, unless they are there; return its origin.

        Raise SealwardError.
        """
        shard = self.shards.current(tenant)
        name = _renamed(shard.name, label or self.next_label(shard.name))
        if shard.store.get(_next(name.label, KEYS)) is None:
            values = new_log_keys(self._parts.ring, name.origin)
            labels = f"{(shard.store.get(NEXT) or b'').decode()} {name.label}".split()
            shard.store.put(
                [
                    *((_next(name.label, key), value) for key, value in values),
                    (NEXT, " ".join(labels).encode()),
                ]
            )
        self.write_vkeys()
        return name.origin

    def turn(self, tenant: str, label: str = "") -> LiveShard:
        """End the tenant's current log and begin the next; return it. Raise SealwardError.

        Whoever appends meanwhile waits. An error after the turn was written down does not undo it:
        it is completed soon, or by the next start.
        """
        with self._lock:
            if tenant in self._turning:
                raise SealwardError(
                    Reason.AUDIT_UNAVAILABLE, "the log is turning already", retry_after=1.0
                )
            return self._turn(tenant, label)

    def next_label(self, name: LogName) -> str:
        """Return the label of the log that follows: the year, or the next one within it."""
        year = self.today.year
        if year > name.year:
            return str(year)
        number = name.label.partition("-")[2]
        return f"{name.year}-{int(number or 1) + 1}"

    def _by_calendar(self) -> None:
        now = self.today
        for tenant in self.shards.tenants:
            shard = self.shards.current(tenant)
            try:
                if tenant in self._turning:
                    self._advance(tenant)
                    continue
                if not self._steady():
                    continue
                if expire(shard, self._clock()):
                    self._parts.logger.info("log.key-ended", tenant=tenant)
                if now.year > shard.name.year:
                    self.before_turn(shard, _renamed(shard.name, str(now.year)).origin)
                    self._turn(tenant, str(now.year))
                elif (now + dt.timedelta(days=self._announce_days)).year > shard.name.year:
                    label = str(shard.name.year + 1)
                    if shard.store.get(_next(label, KEYS)) is None:
                        self.announce(tenant, label)
            except SealwardError as error:
                self._put_off(tenant, error.reason.name)
            except (StartupError, StoreError, OSError) as error:
                self._put_off(tenant, type(error).__name__)

    def _put_off(self, tenant: str, reason: str) -> None:
        self._again = time.monotonic() + _RETRY_SECONDS
        self._parts.logger.error("log.turn-failed", tenant=tenant, reason=reason)

    def _turn(self, tenant: str, label: str) -> LiveShard:
        shard = self.shards.current(tenant)
        label = label or self.next_label(shard.name)
        self.announce(tenant, label)
        if _Turn.of(shard.store) is None:
            meant = _Turn(label, new_event_id(), new_event_id())
            shard.store.put([(_TURN, meant.encode())])
        self._turning.add(tenant)
        return self._advance(tenant)

    def _advance(self, tenant: str) -> LiveShard:
        """Go on with a turn from wherever it is."""
        logs = self.shards.of(tenant)
        if not logs.current.closed:
            self._end(logs.current)
        self._settle(tenant)
        place, past = self._find(tenant)
        current = LiveShard(self._parts, place, _unexpected)
        if self._started:
            current.start()
        known = {shard.origin: shard for shard in logs.past}
        logs.turned(current, [known.get(shard.origin, shard) for shard in past])
        self._turning.discard(tenant)
        self.write_vkeys()
        self._parts.logger.info("log.turned", tenant=tenant, origin=current.origin)
        self._on_turned(current)
        return current

    def _end(self, shard: LiveShard) -> None:
        """Append the last entry, publish and index everything, keep the final checkpoint."""
        meant = _Turn.of(shard.store)
        if meant is None:
            raise ValueError("no turn was meant")
        name = _renamed(shard.name, meant.label)
        (key, *_) = announced(shard.store, meant.label)
        leaf = change_leaf(meant.final, LogFinal(shard.origin, name.origin, key))
        size, checkpoint = shard.log.change(leaf, ends=True)
        shard.stop(_SETTLE_SECONDS)
        # What did not go through, as on a full disk, is made anew when somebody asks for it.
        shard.publisher.finish()
        shard.store.put(
            [
                (FINAL, checkpoint),
                (FINAL_TIME, str(self._clock()).encode()),
                (FINAL_ROOTS, tile_roots(shard.log, size)),
                (FINAL_COSE, shard.log.signed_root(checkpoint)),
            ]
        )
        shard.close()

    def _settle(self, tenant: str) -> None:
        """Bring the places in order: what has ended has its successor, each lies where it belongs.

        Works on what is stored alone, so that it goes on wherever another process died.
        """
        backend, places = self._parts.backend, self._places
        if tenant != DEFAULT_TENANT:
            for place in places.others(tenant):
                self._make_successor(place, lambda label: places.of(tenant, label))
            return
        coming = places.coming
        before = self._predecessor(coming)
        if before is None:
            if backend.has_store(places.first):
                self._make_successor(places.first, lambda _label: coming)
            before = self._predecessor(coming)
        if before is not None:
            backend.move(places.first, places.of(tenant, LogName.parse(before).label))
            backend.move(coming, places.first)
        if coming.folder.is_dir():
            backend.discard(coming)

    def _predecessor(self, place: Place) -> str | None:
        """Return whose successor lies in a place complete; None = nothing, or not complete."""
        if not self._parts.backend.has_store(place):
            return None
        store = self._parts.backend.store(place)
        try:
            before = store.get(PREDECESSOR)
            return before.decode() if before is not None and store.head() is not None else None
        finally:
            store.close()

    def _make_successor(self, place: Place, goes_to: Callable[[str], Place]) -> None:
        """Make the successor of the log in a place, if that has ended and has none."""
        backend = self._parts.backend
        if not backend.has_store(place) or place.manifest.exists():
            return
        store = backend.store(place)
        try:
            origin, final, meant = store.get(ORIGIN), store.get(FINAL), _Turn.of(store)
            if origin is None or final is None or meant is None:
                return
            target = goes_to(meant.label)
            if backend.has_store(target):
                if self._has_head(target):
                    return
                backend.discard(target)
            values = _kept(store, meant.label)
            # What is announced further ahead, as next year's log, stays announced.
            labels = [x for x in (store.get(NEXT) or b"").decode().split() if x != meant.label]
            for label in labels:
                values += [(_next(label, name), value) for name, value in _kept(store, label)]
            values.append((NEXT, " ".join(labels).encode()))
        finally:
            store.close()
        name = _renamed(LogName.parse(origin.decode()), meant.label)
        leaf = change_leaf(meant.successor, LogSuccessor(name.origin, origin.decode(), final))
        self._begin(target, [*values, (PREDECESSOR, origin)], leaf)

    def _begin(self, place: Place, values: Sequence[tuple[str, bytes]], leaf: bytes) -> None:
        store = self._parts.backend.store(place)
        try:
            store.put(values)
            root = leaf_hash(leaf)
            key = EventKey(leaf[1:17], root[:16])
            store.commit(0, [leaf], [root], [key], Head(1, root))
        finally:
            store.close()

    def _has_head(self, place: Place) -> bool:
        store = self._parts.backend.store(place)
        try:
            return store.head() is not None
        finally:
            store.close()

    # --- where they lie -------------------------------------------------------------------------

    def _open(self, tenant: str, opened: Mapping[str, TenantLogs]) -> TenantLogs:
        self._settle(tenant)
        place, past = self._find(tenant)
        current = LiveShard(self._parts, place, lambda: self._new_origin(tenant, opened))
        try:
            resume(current, self._parts.ring)
            meant = _Turn.of(current.store) is not None
            if meant:
                # It died between what it meant and what it did.
                self._end(current)
        except Exception:
            if not current.closed:
                current.close()
            raise
        if meant:
            self._settle(tenant)
            place, past = self._find(tenant)
            current = LiveShard(self._parts, place, _unexpected)
        return TenantLogs(tenant, current, past)

    def _find(self, tenant: str) -> tuple[Place, list[PastShard]]:
        """Return where a tenant's current log lies, and its logs that have ended."""
        current = self._places.first if tenant == DEFAULT_TENANT else None
        past = []
        for place in self._places.others(tenant):
            if not self._parts.backend.has_store(place):
                continue
            if self._has_ended(place):
                past.append(PastShard(self._parts, place))
            elif current is None:
                current = place
            else:
                raise StartupError(f"{place.folder} holds a log that has not ended: move it away")
        return current or self._places.of(tenant, str(self.today.year)), past

    def _has_ended(self, place: Place) -> bool:
        store = self._parts.backend.store(place, sealed=place.manifest.exists())
        try:
            return store.get(FINAL) is not None
        finally:
            store.close()

    def _new_origin(self, tenant: str, opened: Mapping[str, TenantLogs]) -> str:
        domain = self._parts.trust_domain
        if tenant == DEFAULT_TENANT:
            return new_name(domain, self.today.year)
        first = opened[DEFAULT_TENANT].current.name
        return LogName(domain, first.deployment, tenant, str(self.today.year)).origin


def announced(store: LogStore, label: str = "") -> list[str]:
    """Return the verifier keys of the logs to come whose keys are kept in a log's store."""
    labels = [label] if label else (store.get(NEXT) or b"").decode().split()
    lines: list[str] = []
    for one in labels:
        state = store.get(_next(one, KEYS))
        if state is not None:
            lines += vkey_lines(KeyState.decode(state))
    return lines


def _kept(store: LogStore, label: str) -> list[tuple[str, bytes]]:
    """Return the values that a log to come begins with, as the log before it keeps them."""
    names = (ORIGIN, INDEX_KEY, KEYS, *key_names(1))
    found = ((name, store.get(_next(label, name))) for name in names)
    return [(name, value) for name, value in found if value is not None]


def _next(label: str, name: str) -> str:
    """Return the name under which a value of the log to come is kept in the one before it."""
    return f"{NEXT}/{label}/{name}"


def _renamed(name: LogName, label: str) -> LogName:
    return LogName(name.trust_domain, name.deployment, name.tenant, label)


def _unexpected() -> str:
    raise StartupError("a log that was there is not there any more")


def _close(logs: TenantLogs) -> None:
    if not logs.current.closed:
        logs.current.close()
    for shard in logs.past:
        shard.close()
