"""The wrapped keys of all logs, as they move on to newer key-encryption keys.

Every log keeps its own, in its store: one for each segment, its index key, its signing keys, and
those of a log that is announced. Logs that have ended are looked through too; an archive is opened
for it and archived again. While keys move no log turns and no administrator changes one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.holding import Rewrap, WrappedKey, changed
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from services.audit.origin import INDEX_KEY, LogName
from services.audit.patients import POOL
from services.audit.patients import PURPOSE as PATIENTS
from services.audit.retention import Retention
from services.audit.rollover import NEXT, Rollover
from services.audit.segments import SEGMENT
from services.audit.shard import PastShard, Shard
from services.audit.store import StoreError

_PURPOSES = ("audit-segment", "audit-index", "log-signing", PATIENTS)
_CHANGE_SECONDS = 30.0


class LogKeyHolder:
    """Holder (sealward.kit.holding) of every log's wrapped keys. A place is `<origin>#<name>`.

    `wrapping` is what shards hold while they make and keep a key, `changes` what guards the
    changes of administrators. `moved` is told each old and new wrapped key.
    """

    def __init__(
        self,
        rollover: Rollover,
        retention: Retention,
        wrapping: threading.Lock,
        changes: threading.Lock,
        moved: Callable[[bytes, bytes], None],
    ) -> None:
        self._rollover = rollover
        self._retention = retention
        self._wrapping = wrapping
        self._changes = changes
        self._moved = moved

    def places(self, tenant: str, purpose: str) -> Sequence[str]:
        """See Holder. The logs of a tenant that is not configured are named as one place."""
        if tenant not in self._rollover.shards.tenants:
            unopened = self._rollover.places.others(tenant)
            return [f"{tenant}: not in SEALWARD_AUDIT_TENANTS"] if unopened else []
        found = []
        with self._still():
            try:
                for shard in self._rollover.shards.readable(tenant):
                    found += [
                        f"{shard.origin}#{name}"
                        for name in wrapped_names(shard)
                        if context_of(shard.name, name).purpose == purpose
                    ]
            except (StoreError, StartupError):
                raise _unreadable() from None
        return found

    def rewrap(self, places: Sequence[str], rewrap: Rewrap) -> tuple[int, list[str]]:
        """See Holder. A log's keys in one call are replaced together."""
        keys: list[WrappedKey] = []
        there: list[str] = []
        with self._still():
            known = {shard.origin: shard for shard in self._rollover.shards.everything()}
            unknown = [place for place in places if _split(place)[0] not in known]
            try:
                for place in places:
                    origin, name = _split(place)
                    shard = known.get(origin)
                    wrapped = shard.store.get(name) if shard and shard.state != "purged" else None
                    if shard and wrapped:
                        keys.append(WrappedKey(context_of(shard.name, name), wrapped))
                        there.append(place)
                new, failed = changed(keys, there, rewrap)
                self._keep(new, known)
            except (StoreError, StartupError):
                raise _unreadable() from None
            old = {place: key.wrapped for place, key in zip(there, keys, strict=True)}
            for place, wrapped in new:
                self._moved(old[place], wrapped)
        return len(new), [*failed, *unknown]

    def _keep(self, new: Sequence[tuple[str, bytes]], known: dict[str, Shard]) -> None:
        of: dict[str, list[tuple[str, bytes]]] = {}
        for place, wrapped in new:
            origin, name = _split(place)
            of.setdefault(origin, []).append((name, wrapped))
        for origin, values in of.items():
            shard = known[origin]
            if isinstance(shard, PastShard):
                self._retention.rewrap(shard, values)
            else:
                shard.store.put(values)

    def _still(self) -> ExitStack:
        with ExitStack() as held:
            if not self._changes.acquire(timeout=_CHANGE_SECONDS):
                raise SealwardError(
                    Reason.AUDIT_UNAVAILABLE, "a change of the logs is under way", retry_after=1.0
                )
            held.callback(self._changes.release)
            held.enter_context(self._rollover.still())
            held.enter_context(self._wrapping)
            return held.pop_all()


def wrapped_names(shard: Shard) -> list[str]:
    """Return the names of a log's wrapped keys in its store; raise StoreError."""
    names = [name for name in (INDEX_KEY,) if shard.store.get(name)]
    names += shard.store.names(SEGMENT)
    for prefix in ("signing/", f"{NEXT}/", POOL):
        names += [name for name in shard.store.names(prefix) if name.endswith("/wrapped")]
    return names


def context_of(log: LogName, name: str) -> EncryptionContext:
    """Return what a wrapped key is for, by the name that it is kept under in a log's store."""
    if name.startswith(f"{NEXT}/"):
        _, label, rest = name.split("/", 2)
        return context_of(LogName(log.trust_domain, log.deployment, log.tenant, label), rest)
    if name.startswith(SEGMENT):
        return EncryptionContext(log.tenant, _PURPOSES[0], name.removeprefix(SEGMENT))
    if name.startswith(POOL):
        pool = name.removeprefix(POOL).partition("/")[0]
        return EncryptionContext(log.tenant, PATIENTS, pool)
    purpose = _PURPOSES[1] if name == INDEX_KEY else _PURPOSES[2]
    return EncryptionContext(log.tenant, purpose, log.origin)


def _split(place: str) -> tuple[str, str]:
    origin, _, name = place.partition("#")
    return origin, name


def _unreadable() -> SealwardError:
    return SealwardError(
        Reason.AUDIT_UNAVAILABLE, "the store of a log cannot be read or written", retry_after=1.0
    )
