"""Tells how the key provider is: health, metrics, log lines and records."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sealward.kit.errors import SealwardError
from sealward.kit.health import Health
from sealward.kit.reasons import Reason
from services.keys.providers.base import (
    AuthorityState,
    BranchKeys,
    CertificateAuthority,
    Condition,
    State,
)
from services.keys.records import Recorder

if TYPE_CHECKING:
    from services.keys.providers.vault.session import VaultSession

PART = "keystore"
"""Name of the provider among the parts of the service's health."""
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ProviderWatch:
    """Is told of each change of a provider (services.keys.provider.OnChange)."""

    def __init__(
        self, health: Health, recorder: Recorder, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._health = health
        self._recorder = recorder
        self._log = log
        self._before = ""

    def __call__(self, condition: Condition) -> None:
        """Tell of a change; what is the same as before is told once."""
        ready = condition.state == "ready"
        self._health.set(PART, ready=ready)
        if condition.trouble == self._before:
            return
        recovered, self._before = bool(self._before) and ready, condition.trouble
        if recovered:
            self._log.info("provider.recovered")
        else:
            self._log.error("provider.trouble", reason=condition.trouble, state=condition.state)
        try:
            self._recorder.record(
                "keys.provider",
                "ok" if ready else "failed",
                reason=None if ready else Reason.KEYSTORE_UNAVAILABLE.name,
                target=condition.trouble or "ready",
            )
        except SealwardError:
            # Nothing waits for this record; the log line above is there.
            self._log.error("provider.unrecorded")


def provider_metrics(registry: CollectorRegistry, branches: BranchKeys) -> None:
    """Register what every provider has: one gauge a state, 1 for the one that it is in."""
    gauge = Gauge(
        "sealward_keys_provider_state", "1 for the state that the key provider is in",
        ["provider", "state"], registry=registry,
    )  # fmt: skip
    for state in get_args(State):
        _follow(
            gauge.labels(branches.name, state), lambda s: branches.condition().state == s, state
        )


def authority_metrics(registry: CollectorRegistry, authority: CertificateAuthority) -> None:
    """Register what is to be seen of the certificate authority."""
    count = Gauge(
        "sealward_keys_authorities", "Authorities in the trust bundle, by where they stand",
        ["state"], registry=registry,
    )  # fmt: skip
    for state in get_args(AuthorityState):
        _follow(
            count.labels(state),
            lambda s: sum(one.state == s for one in authority.authorities()),
            state,
        )
    left = Gauge(
        "sealward_keys_authority_seconds", "Time until the authority that signs comes to its end",
        registry=registry,
    )  # fmt: skip

    def seconds() -> float:
        (first, *_) = authority.authorities()
        certificate = x509.load_pem_x509_certificate(first.certificate_pem)
        return certificate.not_valid_after_utc.timestamp() - time.time()

    left.set_function(seconds)


def vault_metrics(registry: CollectorRegistry, session: VaultSession) -> None:
    """Register what the Vault provider has besides."""
    from services.keys.providers.vault.troubles import Trouble

    trouble = Gauge(
        "sealward_keys_vault_trouble", "1 for what keeps Vault from serving", ["trouble"],
        registry=registry,
    )  # fmt: skip
    for kind in Trouble:
        _follow(trouble.labels(kind), lambda kind: session.condition().trouble == kind, kind)
    calls = Counter(
        "sealward_keys_vault_calls", "Calls of Vault, by operation and outcome",
        ["operation", "outcome"], registry=registry,
    )  # fmt: skip
    seconds = Histogram(
        "sealward_keys_vault_seconds", "Time of a call of Vault, by operation",
        ["operation"], registry=registry, buckets=_SECONDS,
    )  # fmt: skip

    def observe(operation: str, outcome: str, took: float) -> None:
        calls.labels(operation, outcome).inc()
        seconds.labels(operation).observe(took)

    session.observe = observe
    for name, text, value in (
        ("sealward_keys_vault_logins", "Logins to Vault since the start", "logins"),
        ("sealward_keys_vault_renewals", "Renewals of the token since the start", "renewals"),
        ("sealward_keys_vault_failed_renewals", "Renewals of the token that failed since the start",
         "failed_renewals"),
        ("sealward_keys_vault_token_life_seconds", "Life of the token at its last renewal",
         "token_seconds"),
    ):  # fmt: skip
        _follow(Gauge(name, text, registry=registry), lambda name: getattr(session, name), value)


def _follow(gauge: Gauge, value: Callable[[str], float], name: str) -> None:
    gauge.set_function(lambda: float(value(name)))
