"""Write docs/reference/ from the code, or with --check compare it with what is committed."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from sealward.check.catalogue import ROWS
from sealward.kit import attributes
from sealward.kit.access import RPCS
from sealward.kit.health import Health
from sealward.kit.keymetrics import LeaseMetrics
from sealward.kit.metrics import (
    ServerMetrics,
    SpoolMetrics,
    health_metrics,
    process_metrics,
    revocation_metrics,
)
from sealward.kit.reasons import CODES, Reason
from sealward.kit.revocation import Revocations
from sealward.kit.spool import Spool
from services.audit.metrics import AuditMetrics
from services.gateway.metrics import GatewayMetrics
from services.inference.metrics import ModelMetrics
from services.keys.backup import backup_metrics
from services.keys.destroying import destruction_metrics
from services.keys.watch import authority_metrics, provider_metrics, vault_metrics

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made by tools/gen_reference.py; do not edit. -->\n"


def attributes_page() -> str:
    """The span attributes and event types."""
    rows = "".join(
        f"| `{name}` | {'audit only' if name in attributes.AUDIT_ONLY else 'producer'} | "
        f"{'one word' if name in attributes.WORDS else ''}"
        f"{'a number' if name in attributes.NUMBERS else ''} |\n"
        for name in sorted(attributes.ALLOWED | attributes.AUDIT_ONLY)
    )
    types = "".join(f"- `{name}`\n" for name in sorted(attributes.EVENT_TYPES))
    return (
        f"{HEAD}# Span attributes of an audit event\n\nAn attribute that is not listed never "
        "leaves a process: producers filter by this list, and audit filters again. What audit "
        "alone writes is refused from producers. Those with a form are what workloads may send "
        "too: one word of printable ASCII, or a number; anything else is dropped and counted.\n\n"
        "| attribute | who writes it | form |\n|---|---|---|\n"
        f"{rows}\n## Event types\n\n{types}"
    )


def reasons_page() -> str:
    """The reasons with their status codes and the comments of the proto."""
    proto = (ROOT / "protos/sealward/api/common/v1/errors.proto").read_text()
    said = {
        name: " ".join(line.strip().removeprefix("//").strip() for line in text.splitlines())
        for text, name in re.findall(r"((?:  // [^\n-][^\n]*\n)+)  REASON_(\w+) = ", proto)
    }
    rows = "".join(
        f"| `{reason.name}` | {CODES[reason].name} | {said[reason.name].strip()} |\n"
        for reason in Reason
    )
    return (
        f"{HEAD}# Reasons of errors\n\nEvery error carries `google.rpc.ErrorInfo` with one of "
        "these reasons and the domain `sealward`.\n\n| reason | status | meaning |\n|---|---|---|\n"
        f"{rows}"
    )


def access_page() -> str:
    """The identity × RPC table."""
    rows = "".join(f"| `{method}` | {', '.join(sorted(who))} |\n" for method, who in RPCS.items())
    return (
        f"{HEAD}# Which identity may call which RPC\n\nWhat is not listed is refused. Roles and "
        "purposes narrow this further at the gateway.\n\n| method | callers |\n|---|---|\n"
        f"{rows}"
    )


def check_page() -> str:
    """The rows of the safeguards check."""
    rows = "".join(
        f"| {row.id} | {row.title} | {row.current} | {row.nprm} | {row.proves} | {row.not_proven} "
        f"| {row.duty} |\n"
        for row in ROWS
    )
    return (
        f"{HEAD}# Rows of the safeguards check\n\n`sealward check` tries each on the running "
        "deployment; [how to read it](../check.md). The proposed rule is 90 FR 898 (2025-01-06): "
        "read its text before citing it.\n\n"
        "| id | safeguard | rule in force | proposed | what a green row proves | what not | "
        "what the covered entity still has to do |\n|---|---|---|---|---|---|---|\n"
        f"{rows}"
    )


def _of_every_service(registry: CollectorRegistry) -> None:
    process_metrics(registry, "", "")
    health_metrics(registry, Health())
    revocation_metrics(registry, Revocations(), follows=False)
    ServerMetrics(registry)


def _of_followers(registry: CollectorRegistry) -> None:
    revocation_metrics(registry, Revocations(), follows=True)


def _of_the_spool(registry: CollectorRegistry) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder, "spool.db"))
        SpoolMetrics(registry, spool)
        spool.close()


def _of_leases(registry: CollectorRegistry) -> None:
    LeaseMetrics(registry).follow(lambda: ())


def _of_providers(registry: CollectorRegistry) -> None:
    nothing: Any = SimpleNamespace(name="")
    provider_metrics(registry, nothing)
    authority_metrics(registry, nothing)
    destruction_metrics(registry, SimpleNamespace(all=list))  # type: ignore[arg-type]


def _of_backups(registry: CollectorRegistry) -> None:
    nothing: Any = SimpleNamespace(
        backup_age=lambda: 0.0, behind=lambda: 0.0, drill_age=lambda: 0.0
    )
    backup_metrics(registry, nothing)


def _of_vault(registry: CollectorRegistry) -> None:
    nothing: Any = SimpleNamespace()
    vault_metrics(registry, nothing)


METRICS: tuple[tuple[str, Callable[[CollectorRegistry], object]], ...] = (
    ("Every service", _of_every_service),
    ("gateway, inference and audit: revoked certificates", _of_followers),
    ("gateway, inference and audit: leased keys", _of_leases),
    ("inference and keys: records on their way to audit", _of_the_spool),
    ("gateway", GatewayMetrics),
    ("audit", AuditMetrics),
    ("inference", ModelMetrics),
    ("keys", _of_providers),
    ("keys with the embedded keystore", _of_backups),
    ("keys with Vault", _of_vault),
)
"""Who has which metrics: a heading, and what registers them."""


def metric_rows(register: Callable[[CollectorRegistry], object]) -> Iterator[tuple[str, ...]]:
    """Yield (name, type, labels, meaning) of what is registered."""
    registry = CollectorRegistry()
    register(registry)
    for collector in registry._collector_to_names:  # noqa: SLF001 - no other way to the labels
        # What describes itself is not asked for values, which nothing stands behind here.
        families = getattr(collector, "describe", collector.collect)()
        for family in families:
            labels = getattr(collector, "_labelnames", getattr(family, "_labelnames", ()))
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield name, family.type, ", ".join(labels), family.documentation


def metrics_page() -> str:
    """The metrics of all services."""
    page = (
        f"{HEAD}# Metrics\n\nEach service serves them at `/metrics` of its metrics address, over"
        " TLS 1.3 and to a client certificate of the deployment alone. Labels hold names from"
        " closed sets, never a user, a patient or a text. A histogram has the series `…_bucket`,"
        " `…_sum` and `…_count`. What to watch: "
        "[the alarms of the audit trail](../../services/audit/README.md#alarms).\n"
    )
    seen: set[str] = set()
    for heading, register in METRICS:
        new = [row for row in metric_rows(register) if row[0] not in seen]
        seen |= {row[0] for row in new}
        rows = "".join(
            f"| `{name}` | {kind} | {labels} | {text} |\n" for name, kind, labels, text in new
        )
        page += f"\n## {heading}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n{rows}"
    return page


def main() -> int:
    """Write the pages, or with --check say which are stale; 1 when some are."""
    stale = []
    for name, page in (
        ("attributes", attributes_page()),
        ("reasons", reasons_page()),
        ("access", access_page()),
        ("metrics", metrics_page()),
        ("check", check_page()),
    ):
        path = ROOT / "docs" / "reference" / f"{name}.md"
        if "--check" not in sys.argv[1:]:
            path.write_text(page)
        elif not path.exists() or path.read_text() != page:
            stale.append(path.name)
    for name in stale:
        print(f"docs/reference/{name} is stale: run python tools/gen_reference.py")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
