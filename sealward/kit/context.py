"""What the runner hands to a service's composition root."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Generic, Protocol

import structlog
from prometheus_client import CollectorRegistry

from sealward.kit.health import Health
from sealward.kit.identity import PeerReader
from sealward.kit.metrics import ServerMetrics
from sealward.kit.revocation import Revocations
from sealward.kit.settings import S
from sealward.kit.tls import Credentials


class App(Protocol):
    """A composed service."""

    address: str
    """host:port of its gRPC listener."""

    def start(self) -> None:
        """Start serving; raise StartupError when a dependency is missing."""

    def stop(self, grace: float) -> None:
        """Drain within `grace` seconds and release everything."""


@dataclass
class ServiceContext(Generic[S]):
    """The parts of the chassis that a service is built from.

    `renew` is set when the own certificate has to be replaced at once.
    """

    name: str
    settings: S
    log: structlog.typing.FilteringBoundLogger
    credentials: Credentials
    health: Health
    metrics: CollectorRegistry
    server_metrics: ServerMetrics
    peers: PeerReader
    stop: threading.Event = field(default_factory=threading.Event)
    renew: threading.Event = field(default_factory=threading.Event)
    failure: str = ""

    def fail(self, reason: str) -> None:
        """Stop the process with one clear line and exit status 1. Safe from any thread."""
        self.failure = self.failure or reason
        self.stop.set()

    @property
    def revocations(self) -> Revocations:
        """The revoked certificates, as this process knows them."""
        return self.peers.revocations

    def server_name(self, service: str) -> str:
        """The DNS name that a service's certificate carries."""
        return f"{service}.{self.settings.trust_domain}"
