"""The keys service through gRPC, and what a holder of a lease asks it: nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.audit.services import Services
from benchmarks.measure import middle, percentile
from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit.channel import Channels
from sealward.kit.keysclient import KeyRing, KeysServiceSource
from sealward.seal.context import EncryptionContext
from sealward.seal.lease import Lease

_CONTEXT = EncryptionContext("default", "session", "benchmark")
_SERVER = "keys.sealward.local"
_USES = 100_000


class CountingSource(KeysServiceSource):
    """The real source; counts what is asked."""

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels)
        self.asked = 0

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Lease]:
        self.asked += 1
        return super().create(context, timeout)

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Lease]:
        self.asked += 1
        return super().open(context, wrapped, timeout)


def calls(
    services: Services, more: dict[str, Callable[[], object]]
) -> dict[str, Callable[[], object]]:
    """What is measured side by side: calls of the service, and `more`."""
    channels = Channels(services.credentials("gateway"), services.keys_address, _SERVER)
    stub = KeysServiceStub(channels.get())
    context = keys_pb2.EncryptionContext(
        tenant=_CONTEXT.tenant, purpose=_CONTEXT.purpose, resource=_CONTEXT.resource
    )
    create = keys_pb2.CreateBranchKeyRequest(context=context)
    wrapped = stub.CreateBranchKey(create, timeout=20, wait_for_ready=True).wrapped
    unwrap = keys_pb2.OpenBranchKeyRequest(context=context, wrapped=wrapped)
    bundle = keys_pb2.GetTrustBundleRequest()
    return {
        "create": lambda: stub.CreateBranchKey(create, timeout=20),
        "open": lambda: stub.OpenBranchKey(unwrap, timeout=20),
        "bundle": lambda: stub.GetTrustBundle(bundle, timeout=20),
        **more,
    }


def latencies(
    works: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Time each call in turns, one on its way; microseconds at the caller."""
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for work in works.values():
        _measure(work, 0.2)
    for turn in range(rounds):
        for name in sorted(works, reverse=bool(turn % 2)):
            raw[name].append(_measure(works[name], seconds))
    return {
        name: {
            **{key: middle([point[key] for point in points]) for key in points[0]},
            "raw": points,
        }
        for name, points in raw.items()
    }


def _measure(work: Callable[[], object], seconds: float) -> dict[str, float]:
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends:
        work()
        taken.append((time.perf_counter() - began) * 1e6)
    return {"p50_us": percentile(taken, 0.5), "p99_us": percentile(taken, 0.99)}


def leased(services: Services) -> dict[str, float]:
    """Seal and open under one lease; count what keys is asked meanwhile, and the time of a use."""
    channels = Channels(services.credentials("gateway"), services.keys_address, _SERVER)
    source = CountingSource(channels)
    ring = KeyRing(source)
    try:
        branch = ring.open(_CONTEXT, ring.create(_CONTEXT).wrapped)
        before = source.asked
        began = time.process_time()
        for _ in range(_USES):
            branch.use(1)
        spent = time.process_time() - began
        sealed = branch.seal(b"a session", "value")
        for _ in range(_USES // 100):
            branch.open(sealed, "value")
        return {
            "uses": _USES + _USES // 100 + 1,
            "asked": source.asked - before,
            "use_us": spent / _USES * 1e6,
        }
    finally:
        ring.close()
        channels.close()
