"""The composition root of the audit service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sealward.api.audit.v1.attest_pb2_grpc import add_AttestServiceServicer_to_server
from sealward.api.audit.v1.audit_pb2 import AppendRequest, AppendResponse
from sealward.api.audit.v1.audit_pb2_grpc import add_AuditServiceServicer_to_server
from sealward.api.audit.v1.cosigning_pb2_grpc import add_CosigningServiceServicer_to_server
from sealward.api.audit.v1.destruction_pb2_grpc import add_DestructionServiceServicer_to_server
from sealward.api.audit.v1.export_pb2_grpc import add_ExportServiceServicer_to_server
from sealward.api.audit.v1.logs_pb2_grpc import add_LogAdminServiceServicer_to_server
from sealward.api.audit.v1.reconcile_pb2_grpc import add_ReconcileServiceServicer_to_server
from sealward.api.audit.v1.review_pb2_grpc import add_ReviewServiceServicer_to_server
from sealward.api.common.v1.holder_pb2_grpc import add_HolderServiceServicer_to_server
from sealward.kit.channel import Channels
from sealward.kit.clock import read_clock
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.grpcio_front import BatchFront
from sealward.kit.holding import HolderServicer
from sealward.kit.identity import parse_identity, spiffe_id
from sealward.kit.keymetrics import LeaseMetrics
from sealward.kit.keysclient import KeyRing, KeysServiceSource
from sealward.kit.server import GrpcServer
from services.audit.attesting import AttestServicer
from services.audit.backend import Places
from services.audit.clock import ClockKeeper
from services.audit.committer import Committer, MeteredAppender, crowded
from services.audit.cosigning.builtin import BuiltinWitness
from services.audit.cosigning.introducing import Introducer
from services.audit.cosigning.keeper import Cosigning, HeldAppender
from services.audit.cosigning.servicer import CosigningServicer
from services.audit.entry import DEFAULT_TENANT
from services.audit.events import OwnEvents
from services.audit.exporting import ExportServicer
from services.audit.gaps import GapKeeper
from services.audit.index import Row
from services.audit.indexer import Indexer
from services.audit.ingest_otlp import TraceIngest, add_to_server
from services.audit.lifecycle import Lifecycle
from services.audit.metrics import AuditMetrics
from services.audit.producers import Gap, Producers
from services.audit.pump import AppendPump
from services.audit.reconciling import ReconcileServicer
from services.audit.retention import SteadyClock
from services.audit.reviewing import ReviewServicer
from services.audit.rollover import Rollover
from services.audit.servicer import AuditServicer
from services.audit.settings import AuditSettings
from services.audit.shard import Hooks, Parts, Shard
from services.audit.shards import TenantMaker
from services.audit.store import StoreError
from services.audit.stores import open_backend

APPEND = "/sealward.api.audit.v1.AuditService/Append"
_TICK_SECONDS = 1.0
_SUMMARY_TICKS = 60

T = TypeVar("T")


class AuditApp:
    """The audit service, composed. `address` is what it listens on."""

    def __init__(self, ctx: ServiceContext[AuditSettings]) -> None:
        """Open store, keys and log; raise StartupError when one of them is missing or damaged."""
        settings = ctx.settings
        self._ctx = ctx
        metrics = self._metrics = AuditMetrics(ctx.metrics)
        if not settings.keys_address:
            raise StartupError("SEALWARD_AUDIT_KEYS_ADDRESS is not set")
        self._channels = Channels(ctx.credentials, settings.keys_address, ctx.server_name("keys"))
        self._ring = KeyRing(
            KeysServiceSource(self._channels),
            on_ready=lambda ready: ctx.health.set("keys", ready=ready),
            metrics=LeaseMetrics(ctx.metrics),
        )
        ctx.revocations.on_destruction(self._ring.recheck)
        self._backend = open_backend(settings)
        builtin = BuiltinWitness(self._channels)
        introducer = Introducer(builtin)
        parts = Parts(
            self._backend,
            self._ring,
            settings.trust_domain,
            ctx.log,
            settings.segment_entries,
            settings.publish_ms / 1000,
            Hooks(
                self._on_size, self._on_published, self._on_full, self._on_broken, self._on_rows,
                introducer.check,
            ),
        )  # fmt: skip
        clock = SteadyClock()
        producers = Producers(time.time, settings.gap_seconds, clock.steady)
        self._gaps = GapKeeper(producers, self._record_gap, metrics, ctx.log)
        self._rollover = Rollover(
            parts,
            Places(settings.data_dir),
            clock,
            announce_days=settings.announce_days,
            steady=clock.steady,
        )
        self._shards = _patiently(
            lambda: self._rollover.open(settings.tenant_names), settings.start_seconds
        )
        _patiently(lambda: introducer.begin(self._shards), settings.start_seconds)
        maker = TenantMaker(self._shards)
        appender = MeteredAppender(
            HeldAppender(self._shards, lambda: self._cosigning.behind), metrics
        )
        identity = parse_identity(spiffe_id(settings.trust_domain, "service", "audit"))
        self._events = OwnEvents(lambda: self._committer, maker, identity, metrics, ctx.log)
        self._cosigning = Cosigning(
            builtin, self._shards, self._backend, self._events, settings, metrics, ctx.log,
            policy_file=settings.data_dir / "log.policy", fail=self._on_fork,
        )  # fmt: skip
        self._clock = ClockKeeper(
            lambda: read_clock(settings.clock_source), self._events.clock, metrics
        )
        self._committer = Committer(
            appender,
            ctx.log,
            settings.waiting_entries,
            self._events.conflicts,
            metrics.waiting.set,
        )
        metrics.waiting_limit.set(settings.waiting_entries)
        front = BatchFront(
            APPEND,
            AppendRequest,
            AppendResponse,
            ctx.peers,
            ctx.log,
            shared_field="checkpoint",
            around=self._events,
            most_waiting=settings.waiting_entries,
            crowded=self._crowded,
        )
        metrics.append_waiting.set_function(lambda: front.waiting)
        metrics.held_streams.set_function(lambda: front.held)
        self._pump = AppendPump(
            front,
            appender,
            maker,
            ctx.log,
            self._events.conflicts,
            lambda reason: metrics.refused.labels(reason.name).inc(),
        )
        servicer = AuditServicer(self._shards)
        self._lifecycle = Lifecycle(
            self._rollover, self._backend, self._ring, parts.wrapping, self._events, settings,
            metrics, ctx.log, clock,
        )  # fmt: skip
        self._server = GrpcServer(
            ctx,
            servicers=[
                (add_AuditServiceServicer_to_server, servicer),
                (
                    add_AttestServiceServicer_to_server,
                    AttestServicer(self._shards, self._events),
                ),
                (add_CosigningServiceServicer_to_server, CosigningServicer(self._cosigning)),
                (add_ExportServiceServicer_to_server, ExportServicer(self._shards)),
                (add_LogAdminServiceServicer_to_server, self._lifecycle.servicer),
                (add_DestructionServiceServicer_to_server, self._lifecycle.destruction),
                (
                    add_HolderServiceServicer_to_server,
                    HolderServicer(self._lifecycle.holder, self._channels),
                ),
                (add_ReviewServiceServicer_to_server, ReviewServicer(self._shards)),
                (add_ReconcileServiceServicer_to_server, ReconcileServicer(self._shards)),
                (_add_ingest, TraceIngest(self._committer, maker, metrics)),
            ],
            fronts=[front],
            around=self._events,
        )
        self.address = self._server.address
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        log = self._shards.current().log
        size, _ = log.head
        self._metrics.size.set(size)
        self._metrics.unpublished.set_function(self._unpublished)
        self._metrics.index_behind.set_function(lambda: max(i.behind for i in self._indexers()))
        self._metrics.index_stalled.set_function(lambda: max(i.stalled for i in self._indexers()))
        self._lifecycle.observe()
        self._ctx.health.set("disk", ready=True)
        self._ctx.health.set("keys", ready=True)
        self._ctx.health.set("cosigned", ready=True)
        self._committer.start()
        try:
            self._events.begun(size)
        except SealwardError as error:
            # A full disk may have space again before anybody asks; it is shown and waited for.
            self._ctx.log.error("log.not-writable", reason=error.reason.name)
        self._rollover.start()
        self._cosigning.start()
        self._pump.start()
        self._keeper.start()
        self._server.start()
        self._ctx.log.info("log.open", origin=log.origin, size=size)

    def stop(self, grace: float) -> None:
        """Answer what was taken in, publish it, and release everything."""
        ends = time.monotonic() + grace
        self._server.drain(grace)
        self._stopped.set()
        self._keeper.join(max(1.0, ends - time.monotonic()))
        self._gaps.save()
        self._pump.join(max(1.0, ends - time.monotonic()))
        self._committer.close(max(1.0, ends - time.monotonic()))
        self._cosigning.stop(max(1.0, ends - time.monotonic()))
        self._rollover.stop(max(1.0, ends - time.monotonic()))
        self._backend.close()
        self._ring.close()
        self._channels.close()

    def _crowded(self, count: int) -> SealwardError:
        error = crowded()
        self._metrics.refused.labels(error.reason.name).inc(count)
        return error

    def _record_gap(self, gap: Gap) -> None:
        self._events.gap(gap)

    def _on_rows(self, shard: Shard, first: int, rows: Sequence[Row | None]) -> None:
        self._gaps.indexed(shard, first, rows)

    def _on_size(self, shard: Shard, size: int) -> None:
        if shard.tenant == DEFAULT_TENANT:
            self._metrics.size.set(size)

    def _on_published(self, shard: Shard, size: int) -> None:
        self._cosigning.rounds.changed()
        if shard.tenant == DEFAULT_TENANT:
            self._metrics.published_size.set(size)
            self._metrics.published_time.set(time.time())

    def _unpublished(self) -> float:
        shards = self._shards
        return max(shards.current(tenant).publisher.behind for tenant in shards.tenants)

    def _indexers(self) -> Iterator[Indexer]:
        for tenant in self._shards.tenants:
            yield self._shards.current(tenant).indexer

    def _on_full(self, full: bool) -> None:
        self._metrics.full.set(full)
        self._ctx.health.set("disk", ready=not full)
        if full:
            self._ctx.log.error("log.disk-full")
        else:
            self._ctx.log.info("log.disk-has-space")

    def _on_broken(self, reason: str) -> None:
        self._ctx.health.set("disk", ready=False)
        self._ctx.fail(reason)

    def _on_fork(self, reason: str) -> None:
        self._ctx.health.set("witness", ready=False)
        self._ctx.fail(reason)

    def _look_at_witnesses(self) -> None:
        """Show how the witnesses stand; it is readiness only where releasing waits for them."""
        self._cosigning.tick()
        current = all(record.state == "ok" for record in self._cosigning.rounds.records)
        self._ctx.health.show("witness", ready=current)
        self._ctx.health.set("cosigned", ready=not self._cosigning.behind)

    def _keep(self) -> None:
        """What is done now and then: move pages, look for space, summarise refusals."""
        tick = 0
        self._gaps.start(self._shards)
        while not self._stopped.wait(_TICK_SECONDS):
            tick += 1
            try:
                self._rollover.tick()
            except StoreError as error:
                self._on_broken(str(error))
                return
            # Only the look above has the logs stand still; what is closed here is turning, and the
            # next second has its successor. A disk that failed is found above, or by who appends.
            with suppress(StoreError):
                self._gaps.tick()
                self._clock.tick(self._shards)
                self._look_at_witnesses()
            if tick % _SUMMARY_TICKS == 0:
                self._events.summarise()
                self._observe()

    def _observe(self) -> None:
        try:
            self._lifecycle.observe()
        except StoreError:
            # A log is turning; the next minute has the figures.
            return


def build(ctx: ServiceContext[AuditSettings]) -> AuditApp:
    """Compose the service."""
    return AuditApp(ctx)


def _add_ingest(servicer: Any, server: Any) -> None:
    add_to_server(servicer, server)


def _patiently(action: Callable[[], T], seconds: float) -> T:
    """Run `action` until it does not fail for want of the keys service, or time is over."""
    ends = time.monotonic() + seconds
    while True:
        try:
            return action()
        except SealwardError as error:
            if error.retry_after is None:
                raise StartupError(f"the log's keys do not open: {error.message}") from None
            if time.monotonic() >= ends:
                raise StartupError(
                    f"no answer from the keys service in {seconds:.0f} s: is it running?"
                ) from None
            time.sleep(0.1)
