"""The table of a run, in Markdown."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return the page of a run."""
    machine = results["machine"]
    lines = [
        f"# The audit log, {results['when']}",
        "",
        (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['filesystem']}, Linux"
            f" {machine['kernel']}, Python {machine['python']}, grpcio {machine['grpcio']};"
            f" fdatasync of 4 KiB p50 {results['fdatasync_us']['p50']:.0f} µs, p99"
            f" {results['fdatasync_us']['p99']:.0f} µs in this run; load average before"
            f" {results['load_average']:.2f}."
        ),
        "",
        "Durable appends of 1 KiB sealed entries, in process, closed loop, median of the rounds:",
        "",
        (
            "| writers | ours, each with its receipt | Tessera, index alone | × | Tessera, with its"
            " receipt | × |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for writers, row in results["engine"].items():
        lines.append(
            f"| {writers} | {row['ours']['per_second']:,.0f}/s ({row['ours']['p50_us']:,.0f} µs)"
            f" | {row['tessera']['per_second']:,.0f}/s ({row['tessera']['p50_us']:,.0f} µs)"
            f" | {row['ratio']:.1f} | {row['tessera_receipts']['per_second']:,.0f}/s"
            f" ({row['tessera_receipts']['p50_us']:,.0f} µs) | {row['ratio_receipts']:.1f} |"
        )
    lines += [
        "",
        (
            "Tessera v1.0.4, POSIX driver, batches of 256 or 5 ms, checkpoints every 100 ms (its"
            " shortest); it does not encrypt. A receipt of it waits for the next checkpoint."
        ),
        "",
        "Through the service, gRPC with mTLS, the client on the same machine:",
        "",
        "| | a second | p50 | p99 |",
        "|---|---|---|---|",
    ]
    for in_flight, row in results["append"].items():
        lines.append(
            f"| Append, {in_flight} in flight | {row['per_second']:,.0f} | {row['p50_us']:,.0f} µs"
            f" | {row['p99_us']:,.0f} µs |"
        )
    for connections, row in results["otlp"].items():
        lines.append(
            f"| OTLP spans, {connections} connections, 512 spans a request |"
            f" {row['per_second']:,.0f} | {row['lost']} lost | {row['asked_to_wait']} asked to"
            " wait |"
        )
    million = results.get("million")
    if million:
        lines += [
            "",
            f"A log of {million['events']:,} events:",
            "",
            "| | |",
            "|---|---|",
            (
                f"| memory of the audit process (PSS) | {million['memory_mib']:.0f} MiB, after a"
                f" restart {million['memory_after_restart_mib']:.0f} MiB |"
            ),
            (
                f"| accounting of one patient, {million['accounting_ms']['events_each']:.0f} events"
                f" with proofs | p50 {million['accounting_ms']['p50']:.0f} ms, worst"
                f" {million['accounting_ms']['worst']:.0f} ms |"
            ),
            (
                f"| `sealward audit verify`, {million['verify']['entries']:,} entries |"
                f" {million['verify']['seconds']:.1f} s |"
            ),
            f"| start, every entry hashed again | {million['restart_seconds']:.1f} s |",
        ]
    return "\n".join(lines) + "\n"
