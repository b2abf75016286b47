"""Metrics of the models. Labels are the names and versions of models that are there, no others."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from sealward.kit.reasons import Reason
from services.inference.manifest import Manifest

_MODEL = ("model", "version")


class ModelMetrics:
    """Counts calls, rows and run time by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ran = Counter("sealward_model_calls", "Calls that ran", _MODEL, registry=registry)
        self._rows = Counter("sealward_model_rows", "Rows that ran", _MODEL, registry=registry)
        self._seconds = Counter(
            "sealward_model_run_seconds",
            "Time in runs and answers, by the wall clock",
            _MODEL,
            registry=registry,
        )
        self._refused = Counter(
            "sealward_model_refused",
            "Calls refused, by reason; no model: none was reached",
            ("model", "reason"),
            registry=registry,
        )
        self._dropped = Counter(
            "sealward_model_inputs_dropped",
            "Inputs of requests that the model does not declare and was not given",
            ("model",),
            registry=registry,
        )
        self._ready = Gauge(
            "sealward_model_ready", "1 = passed its self-test", _MODEL, registry=registry
        )
        self._bound: dict[tuple[str, str], tuple[Any, ...]] = {}

    def ran(self, manifest: Manifest, calls: int, rows: int, seconds: float) -> None:
        """Count the runs of a batch."""
        key = (manifest.name, manifest.version)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = tuple(
                counter.labels(*key) for counter in (self._ran, self._rows, self._seconds)
            )
        for counter, amount in zip(bound, (calls, rows, seconds), strict=True):
            counter.inc(amount)

    def refused(self, manifest: Manifest | None, reason: Reason) -> None:
        """Count one refused call."""
        self._refused.labels(manifest.name if manifest else "", reason.name).inc()

    def dropped(self, manifest: Manifest, count: int) -> None:
        """Count inputs that were dropped."""
        self._dropped.labels(manifest.name).inc(count)

    def state(self, name: str, version: str, *, ready: bool) -> None:
        """Say whether a model is ready."""
        self._ready.labels(name, version).set(int(ready))
