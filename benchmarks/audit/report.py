"""The page of a run, in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.audit import rival

Results = dict[str, Any]


def page(results: Results) -> str:
    """Return the page of a run, whatever parts it had."""
    lines = [f"# The audit log, {results['when']}", "", _machine(results), "", *_targets(results)]
    for part, section in (
        ("engine", _engine), ("append", _append), ("otlp", _otlp), ("million", _million),
    ):  # fmt: skip
        if part in results:
            lines += section(results[part])
    return "\n".join(lines) + "\n"


def _machine(results: Results) -> str:
    machine, load, sync = results["machine"], results["load_average"], results["fdatasync_us"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['filesystem']}, Linux {machine['kernel']}; Python {machine['python']}, grpcio"
        f" {machine['grpcio']} (the transport), SQLite {machine['sqlite']}. fdatasync of 4 KiB in"
        f" this run: p50 {sync['p50']:,.0f} µs, p99 {sync['p99']:,.0f} µs. Load average"
        f" {load['before']:.1f} before, {load['after']:.1f} after. Medians of {results['rounds']}"
        f" rounds of {results['seconds']} s; clients on the same machine."
    )


def _targets(results: Results) -> list[str]:
    if not results["targets"]:
        return []
    lines = ["| target | | measured | |", "|---|---:|---:|---|"]
    for row in results["targets"]:
        bound = "≥" if row["at_least"] else "≤"
        lines.append(
            f"| {row['name']} | {bound} {_number(row['limit'])} {row['unit']}"
            f" | {_number(row['measured'])} | {'met' if row['met'] else '**missed**'} |"
        )
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 50 or value == int(value) else f"{value:.1f}"


def _engine(engine: Results) -> list[str]:
    lines = [
        "",
        "Durable appends of 1 KiB entries in process, each writer with one on its way (p50):",
        "",
        (
            "| writers | ours: sealed, each with its receipt | Tessera: a place in the log | ×"
            " | ours, indexed too | × | Tessera, each with its receipt | × | fdatasync p50 |"
        ),
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for writers, row in engine.items():
        lines.append(
            f"| {writers} | {_rate(row['ours'])} | {_rate(row['tessera'])}"
            f" | **{row['ratio']:.1f}** | {_rate(row['ours_indexed'])}"
            f" | {row['ratio_indexed']:.1f} | {_rate(row['tessera_receipts'])}"
            f" | {row['ratio_receipts']:.1f} | {row['fdatasync_us']['p50']:,.0f} µs |"
        )
    ages = "; ".join(f"{count}: {' or '.join(ages)}" for count, ages in rival.AGES.items())
    return [
        *lines,
        "",
        (
            "Tessera v1.0.4, POSIX driver, batches of at most 256, checkpoints every 100 ms (its"
            f" shortest); a batch waits, by number of writers, {ages}, and the better run of each"
            " round counts. It does not seal and has no index; both publish their tiles. × is the"
            " median of what each round gives."
        ),
    ]


def _rate(figures: Results) -> str:
    return f"{figures['per_second']:,.0f}/s ({figures['p50_us']:,.0f} µs)"


def _append(append: Results) -> list[str]:
    lines = [
        "",
        "`AuditService.Append` over gRPC with mutual TLS, each entry durable and with its receipt:",
        "",
        "| in flight | entries/s | p50 µs | p99 µs | CPU µs/entry of the service |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {count} | {row['per_second']:,.0f} | {row['p50_us']:,.0f} | {row['p99_us']:,.0f}"
        f" | {row['cpu_us']:,.0f} |"
        for count, row in append.items()
    ]
    return lines


def _otlp(otlp: Results) -> list[str]:
    lines = [
        "",
        (
            "OTLP `TraceService/Export`, 512 spans of 14 attributes a request, acknowledged when"
            " durable:"
        ),
        "",
        (
            "| connections | spans/s | acknowledged | not in the log | twice in it | asked to wait"
            " | CPU µs/span |"
        ),
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {count} | {row['per_second']:,.0f} | {row['acknowledged']:,} | {row['lost']}"
        f" | {row['repeated']} | {row['asked_to_wait']} | {row['cpu_us']:,.0f} |"
        for count, row in otlp.items()
    ]
    return lines


def _million(million: Results) -> list[str]:
    accounting, access, verify = (million[key] for key in ("accounting_ms", "access_ms", "verify"))
    return [
        "",
        f"A log of {million['events']:,} events, filled through gRPC with 256 in flight:",
        "",
        "| | |",
        "|---|---|",
        f"| filling | {million['filled_per_second']:,.0f} entries/s |",
        (
            f"| memory of the audit process (PSS) | {million['memory_mib']:.0f} MiB, peak (RSS)"
            f" {million['memory_peak_mib']:.0f} MiB; after a restart"
            f" {million['memory_after_restart_mib']:.0f} MiB |"
        ),
        _asked("accounting of one patient", accounting),
        _asked("every access to one patient", access),
        (
            f"| `sealward audit verify`, {verify['entries']:,} entries, process start included"
            f" | {verify['seconds']:.1f} s |"
        ),
        f"| start of the service, every entry hashed again | {million['restart_seconds']:.1f} s |",
    ]


def _asked(name: str, figures: Results) -> str:
    return (
        f"| {name}, {figures['events_each']:.0f} events, {figures['proofs_each']:.0f} listed with"
        f" proofs | p50 {figures['p50']:.0f} ms, worst of 20 {figures['worst']:.0f} ms |"
    )
