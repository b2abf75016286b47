"""LogAdminService: the logs themselves. Proto to domain and back.

Each change is recorded before it takes effect; when it cannot be recorded, it does not happen.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from sealward.api.audit.v1 import logs_pb2 as pb
from sealward.api.audit.v1 import logs_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.entry import DEFAULT_TENANT
from services.audit.events import OwnEvents
from services.audit.holds import Hold, Holds, Scope, check_id
from services.audit.index import Index, IndexFailedError, Query, TableDigest
from services.audit.logkeys import DAY, SECOND, rotate
from services.audit.queries import check_patient
from services.audit.retention import Retention
from services.audit.rollover import Rollover, announced
from services.audit.segments import KeyRing
from services.audit.shard import PastShard, Shard
from services.audit.store import StoreError

_STATES = {
    "current": pb.LOG_STATE_CURRENT,
    "frozen": pb.LOG_STATE_FROZEN,
    "archived": pb.LOG_STATE_ARCHIVED,
    "purged": pb.LOG_STATE_PURGED,
}
_MAX_TIME = (1 << 63) - 1
# Entries without a time in their id, as exported spans have, are passed over to find one with it.
_LOOK = 64
_WAIT_SECONDS = 5.0
_MOST_OVERLAP_SECONDS = 90 * 24 * 3600


class LogAdminServicer(logs_pb2_grpc.LogAdminServiceServicer):
    """See the proto. One change at a time."""

    def __init__(
        self,
        rollover: Rollover,
        retention: Retention,
        holds: Holds,
        events: OwnEvents,
        ring: KeyRing,
        *,
        overlap_days: int,
        clock: Callable[[], int],
        changes: threading.Lock,
    ) -> None:
        self._rollover = rollover
        self._retention = retention
        self._holds = holds
        self._events = events
        self._ring = ring
        self._overlap = overlap_days * DAY
        self._clock = clock
        self._one = changes

    def ListLogs(
        self, request: pb.ListLogsRequest, context: grpc.ServicerContext
    ) -> pb.ListLogsResponse:
        """Every log, with how long it has to be kept and what holds it."""
        shards = self._rollover.shards
        found = shards.all(request.tenant) if request.tenant else shards.everything()
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListLogsResponse(logs=[self._info(shard, holds=True) for shard in found])

    def Freeze(self, request: pb.FreezeRequest, context: grpc.ServicerContext) -> pb.FreezeResponse:
        """End a log, or announce the next."""
        tenant = request.tenant or DEFAULT_TENANT
        with self._change():
            shard = self._rollover.shards.current(tenant)
            self._before(context, "audit.freeze", shard.origin)
            if request.announce:
                origin = self._rollover.announce(tenant)
                label = origin.rpartition("/")[2]
                (vkey,) = announced(shard.store, label)
                return pb.FreezeResponse(
                    ended=self._info(shard), successor=origin, successor_vkey=vkey
                )
            successor = self._rollover.turn(tenant)
            ended = self._rollover.shards.by_origin(shard.origin)
            return pb.FreezeResponse(
                ended=self._info(ended),
                successor=successor.origin,
                successor_vkey=successor.vkeys[0],
            )

    def RotateLogKey(
        self, request: pb.RotateLogKeyRequest, context: grpc.ServicerContext
    ) -> pb.RotateLogKeyResponse:
        """Give a log another key."""
        if request.overlap_seconds > _MOST_OVERLAP_SECONDS:
            raise SealwardError(
                Reason.FIELD_INVALID, "both keys sign for 90 days at most", field="overlap_seconds"
            )
        with self._change():
            shard = self._rollover.shards.current(request.tenant)
            self._before(context, "log.key", shard.origin)
            old = shard.vkeys[0]
            overlap = request.overlap_seconds * SECOND or self._overlap
            state = rotate(shard, self._ring, self._clock() + overlap)
            self._rollover.write_vkeys()
            return pb.RotateLogKeyResponse(
                origin=shard.origin,
                old_vkey=old,
                new_vkey=shard.vkeys[0],
                overlap_until_unix_nano=state.until,
            )

    def Archive(
        self, request: pb.ArchiveRequest, context: grpc.ServicerContext
    ) -> pb.ArchiveResponse:
        """Archive a log that has ended."""
        with self._change():
            shard = self._past(request.origin)
            self._retention.check_archive(shard)
            self._before(context, "audit.archive", shard.origin)
            files = self._retention.archive(shard)
            return pb.ArchiveResponse(
                folder=self._folder(shard),
                files=[pb.ArchivedFile(path=p, sha256=d) for p, d in sorted(files.items())],
            )

    def Purge(self, request: pb.PurgeRequest, context: grpc.ServicerContext) -> pb.PurgeResponse:
        """Destroy the keys of a log."""
        with self._change():
            shard = self._past(request.origin)
            call_of(context).attributes[names.TARGET] = shard.origin
            if request.confirm != request.origin:
                raise SealwardError(
                    Reason.FIELD_INVALID, "confirm repeats the name of the log", field="confirm"
                )
            self._retention.check_purge(shard)
            self._before(context, "audit.purge", shard.origin)
            self._retention.purge(shard)
            return pb.PurgeResponse(log=self._info(shard))

    def PlaceHold(
        self, request: pb.PlaceHoldRequest, context: grpc.ServicerContext
    ) -> pb.PlaceHoldResponse:
        """Place a hold: its event is the hold."""
        tenant = self._rollover.shards.of(request.tenant).tenant
        if request.origin and self._rollover.shards.by_origin(request.origin).tenant != tenant:
            raise SealwardError(Reason.FIELD_INVALID, "the log is another tenant's", field="origin")
        if request.patient:
            check_patient(request.patient)
        if max(request.since_unix_nano, request.until_unix_nano) > _MAX_TIME:
            raise SealwardError(Reason.FIELD_INVALID, "a time is too large", field="until")
        scope = Scope(
            tenant,
            request.origin,
            request.user,
            bool(request.patient),
            request.since_unix_nano,
            request.until_unix_nano,
        )
        hold_id = self._holds.new_id()
        # Between the look at the holds and the destruction of keys nobody places one.
        with self._change():
            self._before(context, "audit.hold", scope.encode(hold_id), request.patient)
        return pb.PlaceHoldResponse(hold_id=hold_id)

    def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: grpc.ServicerContext
    ) -> pb.ReleaseHoldResponse:
        """Release a hold."""
        hold = self._holds.get(check_id(request.hold_id))
        self._before(context, "audit.release", hold.scope.encode(hold.id))
        return pb.ReleaseHoldResponse()

    def ListHolds(
        self,
        request: pb.ListHoldsRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> pb.ListHoldsResponse:
        """The holds that stand."""
        holds = self._holds.standing()
        call_of(context).attributes[names.COUNT] = len(holds)
        return pb.ListHoldsResponse(holds=[_hold(hold) for hold in holds])

    def Reindex(
        self, request: pb.ReindexRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReindexResponse]:
        """Make an index anew, telling how far it is."""
        shard = self._rollover.shards.by_origin(request.origin)
        indexer, index = shard.indexer, shard.index
        self._before(context, "audit.reindex", shard.origin)
        size = shard.log.head[0]
        indexer.wait(size)
        before = _digest(index, size)
        told: queue.SimpleQueue[tuple[int, int] | Exception | None] = queue.SimpleQueue()

        def rebuild() -> None:
            try:
                indexer.rebuild(lambda done, whole: told.put((done, whole)))
                told.put(None)
            except Exception as error:  # noqa: BLE001 - handed to the thread that answers
                told.put(error)

        threading.Thread(target=rebuild, name="reindex", daemon=True).start()
        yield pb.ReindexResponse(origin=shard.origin, size=size)
        while (step := told.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield pb.ReindexResponse(origin=shard.origin, done=step[0], size=step[1])
        yield pb.ReindexResponse(
            origin=shard.origin, done=size, size=size, before=before, digest=_digest(index, size)
        )

    def _change(self) -> _Held:
        return _Held(self._one)

    def _before(
        self, context: grpc.ServicerContext, event_type: str, target: str, patient: str = ""
    ) -> None:
        self._events.before(call_of(context), event_type, {names.TARGET: target}, patient)

    def _past(self, origin: str) -> PastShard:
        if not origin:
            raise SealwardError(Reason.FIELD_INVALID, "name the log", field="origin")
        shard = self._rollover.shards.by_origin(origin)
        if not isinstance(shard, PastShard):
            raise SealwardError(Reason.LOG_STATE, "the log has not ended: freeze it first")
        return shard

    def _info(self, shard: Shard, *, holds: bool = False) -> pb.LogInfo:
        past = shard if isinstance(shard, PastShard) else None
        size, checkpoint = (past.checkpoint.size, past.final) if past else shard.log.head
        first, last = _times(shard, size)
        held = self._holds.covering(past) if past and holds and past.state != "purged" else []
        return pb.LogInfo(
            origin=shard.origin,
            tenant=shard.tenant,
            year=shard.name.year,
            state=_STATES[shard.state],
            size=size,
            first_unix_nano=first,
            last_unix_nano=last,
            retained_until_unix_nano=self._retention.until(past) if past else 0,
            holds=[hold.id for hold in held],
            folder=self._folder(shard),
            checkpoint=checkpoint,
            vkeys=shard.vkeys,
        )

    def _folder(self, shard: Shard) -> str:
        first = self._rollover.places.first.folder
        return shard.place.folder.relative_to(first).as_posix()


class _Held:
    """Holds the one lock of changes, or says that another is under way."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        # Wrapped keys on their way to a newer key-encryption key hold it for moments.
        if not self._lock.acquire(timeout=_WAIT_SECONDS):
            raise SealwardError(
                Reason.AUDIT_UNAVAILABLE, "another change of the logs is under way", retry_after=1.0
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _hold(hold: Hold) -> pb.Hold:
    scope = hold.scope
    return pb.Hold(
        id=hold.id,
        tenant=scope.tenant,
        origin=scope.origin,
        patient=hold.pseudonym,
        user=scope.user,
        since_unix_nano=scope.since,
        until_unix_nano=scope.until,
        placed_unix_nano=hold.placed,
        actor=hold.actor,
        event_id=hold.event_id,
    )


def _times(shard: Shard, size: int) -> tuple[int, int]:
    """Return when the first and the last entry were made, as far as their ids tell; 0 = unknown."""
    if not size:
        return 0, 0
    try:
        first = shard.store.leaves(0, min(size, _LOOK))
        last = shard.store.leaves(max(0, size - _LOOK), size)
    except StoreError:
        raise SealwardError(
            Reason.AUDIT_UNAVAILABLE, "a log cannot be read", retry_after=1.0
        ) from None
    return _time(first), _time(list(reversed(last)))


def _time(leaves: list[bytes]) -> int:
    for leaf in leaves:
        if leaf[7] >> 4 == 7:
            return int.from_bytes(leaf[1:7], "big") * 1_000_000
    return 0


def _digest(index: Index, size: int) -> bytes:
    """Return the table digest over the rows of the first `size` entries."""
    digest = TableDigest()
    after = -1
    query: dict[str, Any] = {"oldest_first": True, "limit": 4096, "before_index": size}
    try:
        while found := index.rows(Query(after_index=after, **query)):
            for at, row in found:
                digest.add(at, row)
            after = found[-1][0]
    except IndexFailedError:
        raise SealwardError(
            Reason.AUDIT_UNAVAILABLE, "the audit index failed", retry_after=1.0
        ) from None
    return digest.value()
