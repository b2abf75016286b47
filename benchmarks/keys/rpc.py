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
from sealward.seal.lease import Lease as Bounds

CONTEXT = EncryptionContext("default", "session", "benchmark")
_SERVER = "keys.sealward.local"
_USES = 100_000


class CountingSource(KeysServiceSource):
    """The real source; counts what is asked."""

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels)
        self.asked = 0

    def create(self, context: EncryptionContext, timeout: float) -> tuple[bytes, bytes, Bounds]:
        self.asked += 1
        return super().create(context, timeout)

    def open(
        self, context: EncryptionContext, wrapped: bytes, timeout: float
    ) -> tuple[bytes, Bounds]:
        self.asked += 1
        return super().open(context, wrapped, timeout)


def calls(services: Services) -> dict[str, Callable[[], object]]:
    """Calls of the service, to be timed."""
    channels = Channels(services.credentials("gateway"), services.keys_address, _SERVER)
    stub = KeysServiceStub(channels.get())
    context = keys_pb2.EncryptionContext(
        tenant=CONTEXT.tenant, purpose=CONTEXT.purpose, resource=CONTEXT.resource
    )
    create = keys_pb2.CreateBranchKeyRequest(context=context)
    wrapped = stub.CreateBranchKey(create, timeout=20, wait_for_ready=True).wrapped
    unwrap = keys_pb2.OpenBranchKeyRequest(context=context, wrapped=wrapped)
    bundle = keys_pb2.GetTrustBundleRequest()
    return {
        "create": lambda: stub.CreateBranchKey(create, timeout=20),
        "open": lambda: stub.OpenBranchKey(unwrap, timeout=20),
        "bundle": lambda: stub.GetTrustBundle(bundle, timeout=20),
    }


def latencies(
    works: dict[str, Callable[[], object]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Time each call in turns, one on its way and the next right after it; microseconds."""
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


class Lease:
    """A branch key under a lease. Ended by `close`."""

    def __init__(self, services: Services) -> None:
        self._channels = Channels(services.credentials("gateway"), services.keys_address, _SERVER)
        self._source = CountingSource(self._channels)
        self._ring = KeyRing(self._source)
        self._branch = self._ring.open(CONTEXT, self._ring.create(CONTEXT).wrapped)
        self._sealed = self._branch.seal(b"a session", "value")
        self._opened_with = self._source.asked

    def use(self) -> dict[str, float]:
        """Use it and open objects with it; return uses, what keys was asked, the time of a use."""
        began = time.process_time()
        for _ in range(_USES):
            self._branch.use(1)
        spent = time.process_time() - began
        for _ in range(_USES // 100):
            self._branch.open(self._sealed, "value")
        return {
            "uses": _USES + _USES // 100,
            "asked": self._source.asked - self._opened_with,
            "use_us": spent / _USES * 1e6,
        }

    def close(self) -> None:
        self._ring.close()
        self._channels.close()
