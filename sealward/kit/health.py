"""Health: liveness is the process answering at all, readiness is every dependency being there.

grpc.health.v1: the name "" and each served service, and each part under its own name, so that a
probe can ask what is missing. On drain all turn NOT_SERVING first.
"""

from __future__ import annotations

import threading

from grpc_health.v1 import health, health_pb2


class Health:
    """Readiness of the parts of a process; ready when every part is."""

    def __init__(self) -> None:
        self.servicer = health.HealthServicer()
        self._lock = threading.Lock()
        self._parts: dict[str, bool] = {}
        self._services: list[str] = [""]
        self._draining = False
        self._publish()

    def serve(self, services: list[str]) -> None:
        """Name the services whose health follows this process's."""
        with self._lock:
            self._services = ["", *services]
        self._publish()

    def set(self, part: str, *, ready: bool) -> None:
        """Say that a part (such as `audit` or `sessions`) is ready or not."""
        with self._lock:
            self._parts[part] = ready
        self._publish()

    def show(self, part: str, *, ready: bool) -> None:
        """Say how a part stands that readiness does not hang on; it is asked for by its name."""
        self.servicer.set(
            part,
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING,
        )

    def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        with self._lock:
            self._draining = True
        self._publish()

    @property
    def ready(self) -> bool:
        """True when every part is ready."""
        with self._lock:
            return not self._draining and bool(self._parts) and all(self._parts.values())

    @property
    def missing(self) -> list[str]:
        """The parts that are not ready."""
        with self._lock:
            return sorted(name for name, ready in self._parts.items() if not ready)

    def _publish(self) -> None:
        with self._lock:
            parts = {name: ready and not self._draining for name, ready in self._parts.items()}
        for name, ready in {**parts, **dict.fromkeys(self._services, self.ready)}.items():
            self.servicer.set(
                name,
                health_pb2.HealthCheckResponse.SERVING
                if ready
                else health_pb2.HealthCheckResponse.NOT_SERVING,
            )
