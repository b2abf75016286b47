"""The results as a Markdown table."""

from __future__ import annotations

from typing import Any

Results = dict[str, Any]


def table(results: Results) -> str:
    """Return the figures of one run as Markdown."""
    sync = results["fdatasync_us"]["p50"]
    bare = results["bare"]
    lines = [
        f"# {results['when']}",
        "",
        machine(results),
        "",
        (
            "| server | in flight | calls/s | × naive | p50 µs | net of fdatasync | p99 µs"
            " | CPU µs/call | × naive |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        _row("bare ONNX Runtime, in process", "1", bare["per_second"], "", bare, "", ""),
    ]
    for in_flight, pair in results["load"].items():
        naive, ours = pair["naive"], pair["sealward"]
        lines.append(_row("naive grpc.aio, plaintext", in_flight, naive["per_second"], "1", naive))
        lines.append(
            _row(
                "**sealward**, grpcio, every safeguard",
                in_flight,
                ours["per_second"],
                f"**{pair['throughput_ratio']:.2f}**",
                ours,
                f"{max(0.0, ours['latency_us']['p50'] - sync):.0f}",
                f"{pair['cpu_ratio']:.2f}",
            )
        )
    memory = results["memory_mib"]
    parts = ", ".join(f"{name} {mib:.0f}" for name, mib in sorted(memory["sealward"].items()))
    start = results["start_seconds"]
    lines += [
        "",
        (
            f"- Memory (PSS): sealward {sum(memory['sealward'].values()):.0f} MiB in all ({parts});"
            f" naive {sum(memory['naive'].values()):.0f} MiB."
        ),
        (
            f"- Start: empty folder to ready {start['empty_folder_to_ready']:.1f} s; `up` to first"
            f" verified answer {start['up_to_first_answer']:.1f} s (login included); naive"
            f" {start['naive_to_first_answer']:.1f} s."
        ),
        (
            f"- fdatasync of 4 KiB in the same run: p50 {sync:.0f} µs,"
            f" p99 {results['fdatasync_us']['p99']:.0f} µs."
        ),
        f"- Idle suite while the naive server was measured: {results['idle_cpu']:.1%} of the core.",
        *_failures(results),
        "",
    ]
    return "\n".join(lines)


def _failures(results: Results) -> list[str]:
    failed = [point for point in results["raw"] if point["errors"]]
    return [
        f"- **Failed calls**: {point['server']}, {point['in_flight']} in flight, round"
        f" {point['round']}: {point['errors']} beside {point['calls']} answered;"
        f" the last: {point['last_error']}"
        for point in failed
    ]


def machine(results: Results) -> str:
    """Return how the figures were taken, in words."""
    m = results["machine"]
    load = results["load_average"]
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['kernel']}, {m['filesystem']};"
        f" Python {m['python']}, grpcio {m['grpcio']}, ONNX Runtime {m['onnxruntime']}. Each server"
        f" tree on core {results['pinning']['servers']}, the generator ({results['generator']}) on"
        f" core {results['pinning']['generator']}; medians of {results['rounds']} interleaved"
        f" rounds of {results['seconds']} s; one connection; one row a call. Load average"
        f" {load['before']:.1f} before, {load['after']:.1f} after."
    )


def _row(
    name: str,
    in_flight: str,
    rate: float,
    ratio: str,
    figures: Results,
    net: str = "",
    cpu_ratio: str = "1",
) -> str:
    latency = figures["latency_us"]
    cells = (
        name,
        in_flight,
        f"{rate:,.0f}",
        ratio,
        f"{latency['p50']:,.0f}",
        net,
        f"{latency['p99']:,.0f}",
        f"{figures['cpu_us']:,.0f}",
        cpu_ratio,
    )
    return "| " + " | ".join(cells) + " |"
