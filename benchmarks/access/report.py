"""The page of a run: each promise beside its figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]

SLOWER = 1.25
"""How much slower the median of predictions may be beside a flood of logins."""


@dataclass(frozen=True)
class Row:
    """A promise, what was measured, and whether it was kept."""

    what: str
    target: str
    figure: str
    met: bool


def rows(results: Results) -> list[Row]:
    """Return the promises of a run."""
    local, logins, ends = results["local"], results["logins"], results["revocations"]
    cached, uncached = local["cached_us"]["median"], local["uncached_us"]["median"]
    slower = logins["beside"]["p50_us"] / logins["quiet"]["p50_us"]
    unary, streams = ends["unary"], ends["streams"]
    return [
        Row("session and decision, cached", "≤ 20 µs", f"{cached:.1f} µs", cached <= 20),
        Row(
            f"session and decision, neither cached, {local['policies']} policies", "≤ 2 ms",
            f"{uncached / 1e3:.2f} ms", uncached <= 2000,
        ),
        Row(
            "predictions beside a flood of logins, p50", f"≤ {SLOWER} × alone",
            f"{slower:.2f} ×", slower <= SLOWER,
        ),
        Row(
            f"revocation to the last answer, {ends['count']:,} times", "≤ 1 s",
            f"{unary['max_ms']:,.0f} ms at most", unary["max_ms"] <= 1000,
        ),
        Row(
            f"revocation to the end of an open stream, {ends['count']:,} times", "≤ 5 s",
            f"{streams['max_ms']:,.0f} ms at most", streams["max_ms"] <= 5000,
        ),
    ]  # fmt: skip


def table(results: Results) -> str:
    """Return the page of a run."""
    machine, load = results["machine"], results["load_average"]
    logins, ends = results["logins"], results["revocations"]
    marks = {True: "met", False: "**not met**"}
    lines = [
        f"# Access, {results['when']}",
        "",
        (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['filesystem']}, Linux"
            f" {machine['kernel']}, Python {machine['python']}, grpcio {machine['grpcio']}; load"
            f" average {load[0]:.2f} before, {load[1]:.2f} after; medians of"
            f" {results['rounds']} turns."
        ),
        "",
        "| promise | target | measured | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.target} | {row.figure} | {marks[row.met]} |" for row in rows(results)
    ]
    quiet, beside = logins["quiet"], logins["beside"]
    login = logins["login_p50_ms"]
    lines += [
        "",
        f"Predictions, {logins['in_flight']} in flight, every safeguard on, in turns:",
        "",
        "| | p50 µs | p99 µs | a second | failed |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {found['p50_us']:,.0f} | {found['p99_us']:,.0f} |"
            f" {found['per_second']:,.0f} | {found['errors']} |"
            for name, found in (("alone", quiet), ("beside the flood", beside))
        ),
        "",
        (
            "Logins (argon2id, 64 MiB, a process of low priority that rests between them while they"
            f" queue): {logins['logins_per_second']:.1f} a second"
            + (f", p50 {login:,.0f} ms" if login is not None else "")
            + f"; {logins['refused']:,} were refused at once, with the time to wait."
        ),
        "",
        "Revoked at one gateway, in use at another:",
        "",
        "| | p50 ms | p99 ms | most ms |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {found['p50_ms']:,.1f} | {found['p99_ms']:,.1f} | {found['max_ms']:,.1f} |"
            for name, found in (
                ("to the last answered call", ends["unary"]),
                ("to the end of the stream", ends["streams"]),
            )
        ),
    ]
    return "\n".join(lines) + "\n"
