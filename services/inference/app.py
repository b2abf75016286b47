"""The composition root of the inference service."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sealward.api.common.v1.holder_pb2_grpc import add_HolderServiceServicer_to_server
from sealward.api.inference.v1.inference_pb2 import InferRequest, InferResponse
from sealward.api.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from sealward.kit.channel import Channels
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.exporter import SpoolExporter, otlp_sender
from sealward.kit.grpcio_front import BatchFront
from sealward.kit.holding import HolderServicer
from sealward.kit.keymetrics import LeaseMetrics
from sealward.kit.keysclient import KeyRing, KeysServiceSource
from sealward.kit.metrics import SpoolMetrics
from sealward.kit.reasons import Reason
from sealward.kit.recorder import Recorder
from sealward.kit.seam import Limits
from sealward.kit.server import GrpcServer
from sealward.kit.spool import Spool
from services.inference import package, runtime
from services.inference.batching import Batcher
from services.inference.metrics import ModelMetrics
from services.inference.recording import InferenceRecords, RefusalLimit
from services.inference.registry import Registry, State
from services.inference.runspans import RunSpans
from services.inference.servicer import InferenceServicer
from services.inference.settings import InferenceSettings
from services.inference.store import ModelStore
from services.inference.worker import Worker
from services.inference.wrapping import PackageKeys

INFER = "/sealward.api.inference.v1.InferenceService/Infer"
_RETRY_SECONDS = 0.1

T = TypeVar("T")


class InferenceApp:
    """The inference service, composed. `address` is what it listens on.

    The keys service is needed to open the packages, once. Opened models go on serving without it.
    """

    def __init__(self, ctx: ServiceContext[InferenceSettings]) -> None:
        """Compose; raise StartupError when a setting or the spool is not usable."""
        settings = ctx.settings
        for name in ("keys_address", "audit_address"):
            if not getattr(settings, name):
                raise StartupError(f"SEALWARD_INFERENCE_{name.upper()} is not set")
        self._ctx = ctx
        runtime.quiet()
        spec = runtime.RuntimeSpec()
        digest = spec.digest(runtime.cpu_class())
        self._keys_channels = Channels(
            ctx.credentials, settings.keys_address, ctx.server_name("keys")
        )
        self._audit_channels = Channels(
            ctx.credentials, settings.audit_address, ctx.server_name("audit")
        )
        self._ring = KeyRing(
            KeysServiceSource(self._keys_channels), metrics=LeaseMetrics(ctx.metrics)
        )
        ctx.revocations.on_destruction(self._ring.recheck)
        ctx.revocations.on_destruction(self._check_keys)
        self._store = ModelStore(settings.data_dir / "models")
        self._spool = Spool(settings.data_dir / "spool.db")
        SpoolMetrics(ctx.metrics, self._spool)
        self._exporter = SpoolExporter(self._spool, otlp_sender(self._audit_channels), ctx.log)
        recorder = Recorder(self._spool, "inference")
        self._records = InferenceRecords(recorder, digest, RefusalLimit())
        self._metrics = ModelMetrics(ctx.metrics)
        self._registry = Registry(
            spec, digest, refuse_undeclared=settings.undeclared_inputs == "refuse"
        )
        front = BatchFront(
            INFER,
            InferRequest,
            InferResponse,
            ctx.peers,
            ctx.log,
            Limits(calls=settings.batch_calls, bytes=settings.batch_bytes),
            around=self._records.around,
        )
        self._spans = RunSpans(front, recorder, ctx.log, ctx.fail)
        self._worker = Worker(
            front,
            Batcher(self._registry, ctx.log, self._metrics),
            ctx.log,
            ctx.fail,
            self._spans.put,
        )
        self._server = GrpcServer(
            ctx,
            servicers=[
                (add_InferenceServiceServicer_to_server, InferenceServicer(self._registry)),
                (
                    add_HolderServiceServicer_to_server,
                    HolderServicer(PackageKeys(self._store), self._keys_channels),
                ),
            ],
            fronts=[front],
            around=self._records.around,
        )
        self.address = self._server.address

    def start(self) -> None:
        """Seal what is shipped, open every package, serve; raise StartupError."""
        try:
            self._records.service("service.start")
            self._exporter.start()
            keys = package.RingKeys(self._ring, self._ctx.settings.start_seconds)
            self._seal_shipped(keys)
            self._open_all(keys)
        except SealwardError as error:
            if error.reason is Reason.KEYS_UNAVAILABLE:
                raise StartupError(
                    f"no answer from the keys service in {self._ctx.settings.start_seconds:.0f} s: "
                    "is it running?"
                ) from None
            raise StartupError(f"{error.reason.name}: {error.message}") from None
        self._ctx.health.set("models", ready=self._registry.ready)
        self._spans.start()
        self._worker.start()
        self._server.start()

    def stop(self, grace: float) -> None:
        """Answer what was taken in, keep what is to be recorded, release everything."""
        ends = time.monotonic() + grace
        self._server.drain(grace)
        self._worker.join(max(1.0, ends - time.monotonic()))
        self._spans.close(max(1.0, ends - time.monotonic()))
        try:
            self._records.service("service.stop")
        except SealwardError as error:
            self._ctx.log.error("record.lost", reason=error.reason.name)
        self._exporter.stop(max(1.0, ends - time.monotonic()))
        self._ring.close()
        self._keys_channels.close()
        self._audit_channels.close()

    def _seal_shipped(self, keys: package.SealingKeys) -> None:
        """Seal the shipped packages that the store does not have; a broken one is not fatal."""
        for folder in sorted(p for p in self._ctx.settings.shipped_dir.iterdir() if p.is_dir()):
            try:
                files = package.read_folder(folder)
                manifest = package.read_package(files).manifest
                if not self._store.has(manifest.name, manifest.version):
                    self._patiently(functools.partial(package.push, self._store, keys, files))
                    self._ctx.log.info("model.sealed", name=manifest.name, version=manifest.version)
            except package.PackageError as error:
                self._ctx.log.error("model.not-shippable", name=folder.name, reason=str(error))

    def _open_all(self, keys: package.SealingKeys) -> None:
        for name, version in self._store.list():
            started = time.time_ns()
            load = functools.partial(package.load, self._store, keys, name, version)
            entry = self._registry.open(name, version, functools.partial(self._patiently, load))
            ready = entry.state is State.READY
            self._records.opened(entry, started)
            self._metrics.state(name, version, ready=ready)
            log = self._ctx.log.info if ready else self._ctx.log.error
            log(
                f"model.{entry.state.value}",
                name=name,
                version=version,
                duration_ms=(time.time_ns() - started) // 1_000_000,
                **({"reason": entry.reason} if entry.reason else {}),
            )

    def _check_keys(self) -> None:
        """Keys were destroyed: serve no model any more whose key is among them."""

        def check() -> None:
            keys = package.RingKeys(self._ring, self._ctx.settings.start_seconds)
            for entry in self._registry.entries():
                if entry.destroyed:
                    continue
                name, version = entry.name, entry.version
                look = functools.partial(package.check_key, self._store, keys, name, version)
                try:
                    self._patiently(look)
                except package.KeyDestroyedError as error:
                    self._registry.close(name, version, str(error))
                    self._metrics.state(name, version, ready=False)
                    self._ctx.health.set("models", ready=self._registry.ready)
                    self._ctx.log.warning("model.key-destroyed", name=name, version=version)
                except SealwardError as error:
                    self._ctx.log.error("model.unchecked", name=name, reason=error.reason.name)

        threading.Thread(target=check, name="destroyed-keys", daemon=True).start()

    def _patiently(self, action: Callable[[], T]) -> T:
        """Run `action` until it does not fail for want of the keys service, or time is over."""
        ends = time.monotonic() + self._ctx.settings.start_seconds
        while True:
            try:
                return action()
            except SealwardError as error:
                if error.reason is not Reason.KEYS_UNAVAILABLE or time.monotonic() >= ends:
                    raise
            if self._ctx.stop.wait(_RETRY_SECONDS):
                raise SealwardError(Reason.DRAINING, "stopped during the start")


def build(ctx: ServiceContext[InferenceSettings]) -> InferenceApp:
    """Compose the service."""
    return InferenceApp(ctx)
