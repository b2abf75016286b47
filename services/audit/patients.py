"""A key for each patient: it seals the reference inside an entry, so that it can go alone.

Keys are made in pools of 256, kept in the log's store before the first of them is used:

    patient/<pool>/wrapped   a branch key (purpose `audit-patient`, resource the pool's id)
    patient/<pool>/keys      256 keys of 32 bytes, sealed under it (AWS Encryption SDK message)

A key of the pool becomes a patient's when an entry first needs one: the entry names pool and place,
and no other list is kept. What is known in memory is forgotten with the process, so a patient may
have had several keys; each of them has been of one patient alone. An append asks nobody and writes
nothing but the entry; a pool is made ahead, in a thread of its own, when the one in use runs low.

To destroy a key its place in the pool is overwritten, and the pool sealed anew under another branch
key. Copies of what was there before open until the version of the key-encryption key is destroyed
that their branch key is wrapped under; the keys service does that (ADR 0032).

In the span stands, last of its attributes, `sealward.patient.sealed`:

    pool id[8] ‖ place[2] ‖ AES-256-GCM(patient reference)

with the event id as the nonce (16 bytes, SP 800-38D 7.1: under one key only one reference is ever
sealed, so an id that comes twice gives the same bytes twice), pool and place as associated data.
The pseudonym is not in the span: it is computed when the reference is opened, so it goes with it.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealward.kit import attributes as names
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.spans import attribute
from sealward.kit.wire import read_varint, string_field, varint
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import open_object, seal_object
from services.audit.digests import IndexKeys
from services.audit.segments import BranchKey, KeyRing
from services.audit.store import LogStore, StoreError

PURPOSE = "audit-patient"
POOL = "patient/"
"""What the names of pools begin with, in a log's store."""
SINCE = "patients/since"
"""The size that a log had when its patients got keys of their own, in decimal."""
PLACES = 256
KEY_BYTES = 32
_POOL_BYTES, _PLACE_BYTES, _TAG_BYTES = 8, 2, 16
_SLOT_BYTES = _POOL_BYTES + _PLACE_BYTES
_DESTROYED = bytes(KEY_BYTES)
_LOW = 64
# Pools whose patients are known in memory, and pools that were opened to read.
_LIVE_POOLS = 512
_READ_POOLS = 1024
_KEY = string_field(1, names.PATIENT_SEALED) + b"\x12"
_ATTRIBUTE_TAG, _BYTES_TAG = 0x4A, 0x3A
_LONGEST = 512
_DESTROYED_ATTRIBUTE = attribute(names.PATIENT_DESTROYED, True)


class Slot(NamedTuple):
    """Where a patient's key lies: the pool's id and the place in it."""

    pool: bytes
    place: int


class _Live:
    """A pool whose keys are given to patients."""

    __slots__ = ("branch", "free", "id", "keys", "members")

    def __init__(self, pool_id: bytes, keys: bytes, branch: BranchKey) -> None:
        self.id = pool_id
        self.keys = keys
        self.branch = branch
        self.free = 0
        self.members: list[str] = []


class _Patient:
    """A patient's key in use: `head` is pool and place as the entry has them."""

    __slots__ = ("cipher", "head", "pool")

    def __init__(self, pool: _Live, place: int) -> None:
        key = pool.keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]
        self.pool = pool
        self.head = pool.id + place.to_bytes(_PLACE_BYTES, "big")
        self.cipher = AESGCM(key)


class Patients:
    """The patients' keys of one log. Thread-safe. `keys` makes pseudonyms."""

    def __init__(
        self,
        store: Callable[[], LogStore],
        ring: KeyRing,
        tenant: str,
        keys: Callable[[], IndexKeys],
        wrapping: threading.Lock | None = None,
    ) -> None:
        self._store = store
        self._ring = ring
        self._context = EncryptionContext(tenant, PURPOSE, "new")
        self._keys = keys
        self._wrapping = wrapping or threading.Lock()
        self._lock = threading.Lock()
        self._known: dict[str, _Patient] = {}
        self._pools: OrderedDict[bytes, _Live] = OrderedDict()
        self._current: _Live | None = None
        self._next: _Live | None = None
        self._making_lock = threading.Lock()
        self._closed = False
        self._read: OrderedDict[bytes, tuple[BranchKey, bytes]] = OrderedDict()

    def prepare(self) -> None:
        """Make the first pool in a thread of its own, so that the first patient does not wait."""
        threading.Thread(target=self._ahead, name="patient-keys", daemon=True).start()

    # --- writing ------------------------------------------------------------------------------

    def seal(self, event_id: bytes, pseudonym: str, reference: str) -> bytes:
        """Return the attribute with the sealed reference; raise SealwardError."""
        try:
            patient = self._ready(pseudonym)
            head, cipher = patient.head, patient.cipher
        except (SealwardError, StoreError) as error:
            if not self._closed:
                if isinstance(error, SealwardError):
                    raise
                raise SealwardError(
                    Reason.AUDIT_UNAVAILABLE, "the audit log cannot be written", retry_after=1.0
                ) from None
            # The log has ended: whatever is made for it now is made anew for the next one. Should
            # it be kept all the same, it is under a key that nobody has.
            head, cipher = bytes(_SLOT_BYTES), AESGCM(secrets.token_bytes(KEY_BYTES))
        value = head + cipher.encrypt(event_id, reference.encode(), head)
        value = b"\x3a" + varint(len(value)) + value
        pair = _KEY + varint(len(value)) + value
        return b"\x4a" + varint(len(pair)) + pair

    def _ready(self, pseudonym: str) -> _Patient:
        """Return the patient's key; raise SealwardError when it may not be used, StoreError."""
        patient = self._known.get(pseudonym) or self._take(pseudonym)
        try:
            # The lease is asked each time: what was taken from the pool ends with it.
            patient.pool.branch.use()
        except SealwardError:
            if patient.pool.id in self._pools:
                raise
            # The pool was sealed anew meanwhile, because of somebody else in it.
            patient = self._take(pseudonym)
            patient.pool.branch.use()
        return patient

    def _take(self, pseudonym: str) -> _Patient:
        while (patient := self._assigned(pseudonym)) is None:
            # Not under the lock that readers take: making a pool waits for others.
            with self._making_lock:
                if self._next is None and not self._has_room():
                    self._next = self._make()
        return patient

    def _has_room(self) -> bool:
        pool = self._current
        return pool is not None and pool.free < PLACES

    def _assigned(self, pseudonym: str) -> _Patient | None:
        """Return the patient's key, a fresh one where it has none yet; None without a pool."""
        with self._lock:
            known = self._known.get(pseudonym)
            if known is not None:
                return known
            if not self._has_room():
                pool, self._next = self._next, None
                if pool is None:
                    return None
                self._current = self._pools[pool.id] = pool
                if len(self._pools) > _LIVE_POOLS:
                    self._forget_pool(next(iter(self._pools)))
            pool = self._current
            if pool is None:
                return None
            patient = self._known[pseudonym] = _Patient(pool, pool.free)
            pool.free += 1
            pool.members.append(pseudonym)
            if PLACES - pool.free == _LOW and self._next is None:
                self.prepare()
            return patient

    def _ahead(self) -> None:
        with self._making_lock, suppress(SealwardError, StoreError):
            # Where it fails it is made when it is needed, or fails then and there.
            if self._next is None:
                self._next = self._make()

    def _make(self) -> _Live:
        """Make a pool, durably; raise SealwardError or StoreError."""
        if self._closed:
            raise SealwardError(Reason.DRAINING, "the log has ended")
        pool_id, keys = secrets.token_bytes(_POOL_BYTES), secrets.token_bytes(PLACES * KEY_BYTES)
        with self._wrapping:
            branch, values = self._sealed(pool_id, keys)
            self._store().put(values)
        return _Live(pool_id, keys, branch)

    def _sealed(self, pool_id: bytes, keys: bytes) -> tuple[BranchKey, list[tuple[str, bytes]]]:
        """Seal a pool under a branch key of its own; return what is to be kept, too."""
        context = self._context.about(pool_id.hex())
        branch = self._ring.create(context)
        sealed = seal_object(branch.use(len(keys)), context, keys)
        return branch, [(wrapped_name(pool_id), branch.wrapped), (keys_name(pool_id), sealed)]

    def _forget_pool(self, pool_id: bytes) -> None:
        """Give its patients other keys from now on. To be called under the lock."""
        pool = self._pools.pop(pool_id, None)
        if pool is None:
            return
        for member in pool.members:
            if (known := self._known.get(member)) is not None and known.pool is pool:
                del self._known[member]
        if self._current is pool:
            self._current = None
        pool.branch.close()

    # --- reading ------------------------------------------------------------------------------

    def reveal(self, event_id: bytes, span: bytes) -> bytes:
        """Return an opened span with reference and pseudonym in the place of what is sealed.

        Where the key was destroyed `sealward.patient.destroyed` stands there. A span without is
        returned as it is. Raises SealwardError SEAL_BROKEN, KEYS_UNAVAILABLE, and StoreError.
        """
        found = find(span)
        if found is None:
            return span
        at, value = found
        slot = slot_of(value)
        branch, keys = self._pool(slot.pool)
        key = keys[slot.place * KEY_BYTES : (slot.place + 1) * KEY_BYTES]
        if key == _DESTROYED:
            return span[:at] + _DESTROYED_ATTRIBUTE
        branch.use(len(value))
        head = value[:_SLOT_BYTES]
        try:
            text = AESGCM(key).decrypt(event_id, value[_SLOT_BYTES:], head).decode()
        except (InvalidTag, ValueError):
            raise _broken() from None
        pseudonym = self._keys().pseudonym(text)
        return b"".join(
            (
                span[:at],
                attribute(names.PATIENT, pseudonym),
                attribute(names.PATIENT_REFERENCE, text),
            )
        )

    def _pool(self, pool_id: bytes) -> tuple[BranchKey, bytes]:
        with self._lock:
            live = self._pools.get(pool_id)
            if live is not None:
                return live.branch, live.keys
            found = self._read.get(pool_id)
            if found is not None:
                self._read.move_to_end(pool_id)
                return found
        found = self._open(pool_id)
        with self._lock:
            self._read[pool_id] = found
            if len(self._read) > _READ_POOLS:
                _, (oldest, _) = self._read.popitem(last=False)
                oldest.close()
        return found

    def _open(self, pool_id: bytes) -> tuple[BranchKey, bytes]:
        store = self._store()
        wrapped, sealed = store.get(wrapped_name(pool_id)), store.get(keys_name(pool_id))
        if wrapped is None or sealed is None:
            raise _broken()
        context = self._context.about(pool_id.hex())
        branch = self._ring.open(context, wrapped)
        try:
            keys = open_object(branch.use(len(sealed)), context, sealed)
        except SealBrokenError:
            branch.close()
            raise _broken() from None
        if len(keys) != PLACES * KEY_BYTES:
            branch.close()
            raise _broken()
        return branch, keys

    # --- destroying ---------------------------------------------------------------------------

    def destroy(
        self,
        pseudonym: str,
        slots: Iterable[Slot],
        keep: Callable[[Sequence[tuple[str, bytes]]], None],
    ) -> int:
        """Destroy a patient's keys; return how many there were still.

        Each pool is sealed anew, under another branch key; all of them are handed to `keep`, which
        replaces the values in the store, all or none. May be repeated. Raises SealwardError and
        what `keep` raises.
        """
        of: dict[bytes, set[int]] = {}
        for slot in slots:
            of.setdefault(slot.pool, set()).add(slot.place)
        with self._lock:
            # Another key, should the patient come again.
            known = self._known.pop(pseudonym, None)
        if known is not None:
            of.setdefault(known.pool.id, set()).add(slot_of(known.head).place)
        destroyed = 0
        made: dict[bytes, tuple[BranchKey, bytes]] = {}
        values: list[tuple[str, bytes]] = []
        for pool_id, places in of.items():
            keys = bytearray(self._pool(pool_id)[1])
            gone = 0
            for place in places:
                at = place * KEY_BYTES
                gone += keys[at : at + KEY_BYTES] != _DESTROYED
                keys[at : at + KEY_BYTES] = _DESTROYED
            if gone:
                destroyed += gone
                branch, sealed = self._sealed(pool_id, bytes(keys))
                made[pool_id] = branch, bytes(keys)
                values += sealed
        if not destroyed:
            return 0
        keep(values)
        with self._lock:
            for pool_id, opened in made.items():
                # Its other patients get keys of another pool from now on.
                self._forget_pool(pool_id)
                old = self._read.pop(pool_id, None)
                self._read[pool_id] = opened
                if old is not None:
                    old[0].close()
        return destroyed

    def close(self) -> None:
        """Forget every key; nothing is sealed any more."""
        with self._lock:
            self._closed = True
            for pool_id in list(self._pools):
                self._forget_pool(pool_id)
            while self._read:
                _, (branch, _) = self._read.popitem()
                branch.close()
            if self._next is not None:
                self._next.branch.close()
                self._next = None


def find(span: bytes) -> tuple[int, bytes] | None:
    """Return where the sealed reference begins in a span, and its value; None without one.

    It is the last attribute, and nothing of it can be said by what a producer sends: before it
    stands the producer's name, which this service writes.
    """
    at = span.rfind(_KEY, -_LONGEST)
    if at < 3:
        return None
    begin = at - 2 if span[at - 2] == _ATTRIBUTE_TAG else at - 3
    if span[begin] != _ATTRIBUTE_TAG:
        return None
    length, start = read_varint(span, begin + 1)
    if start != at or start + length != len(span):
        return None
    _, inner = read_varint(span, at + len(_KEY))
    if span[inner] != _BYTES_TAG:
        return None
    size, value = read_varint(span, inner + 1)
    if value + size != len(span) or size < _SLOT_BYTES + _TAG_BYTES:
        return None
    return begin, span[value:]


def slot_of(value: bytes) -> Slot:
    """Return the place of the key that a sealed reference names; raise SEAL_BROKEN."""
    place = int.from_bytes(value[_POOL_BYTES:_SLOT_BYTES], "big")
    if place >= PLACES:
        raise _broken()
    return Slot(value[:_POOL_BYTES], place)


def wrapped_name(pool_id: bytes) -> str:
    """Return the name of a pool's wrapped branch key in the store."""
    return f"{POOL}{pool_id.hex()}/wrapped"


def keys_name(pool_id: bytes) -> str:
    """Return the name of a pool's sealed keys in the store."""
    return f"{POOL}{pool_id.hex()}/keys"


def _broken() -> SealwardError:
    return SealwardError(Reason.SEAL_BROKEN, "the patient reference of an entry does not open")
