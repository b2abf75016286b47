"""The page of a run: each target beside its figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A promise, what was measured, and whether it was kept; `met` None = not measured."""

    what: str
    target: str
    figure: str
    met: bool | None


def rows(results: Results) -> list[Row]:
    """Return the promises of a run."""
    entry, small, large = (
        results["local"][name] for name in ("entry", "object_1kib", "object_10mib")
    )
    single = entry["seal"]["seconds"] / entry["bare"]["seconds"]
    share = large["bare_decrypt"]["seconds"] / large["open"]["seconds"]
    slowest = min(small["seal"]["per_second"], small["open"]["per_second"])
    leased = results["leased"]
    return [
        Row(
            "seal an audit entry of 1 KiB, one by one",
            "≤ 3 × bare AES-256-GCM", f"{single:.1f} ×", single <= 3,
        ),
        Row(
            "seal and open an object of 1 KiB", "≥ 4,000/s",
            f"{small['seal']['per_second']:,.0f} and {small['open']['per_second']:,.0f}/s",
            slowest >= 4000,
        ),
        Row(
            "open a sealed package of 10 MiB", "≥ 25 % of bare AES-256-GCM",
            f"{share:.0%}", share >= 0.25,
        ),
        _provider_row(results),
        Row(
            "unwrap under a lease", "0 calls of Vault", _asked(leased),
            not leased["asked"] and not leased["vault"],
        ),
        _memory_row(results["large"]),
    ]  # fmt: skip


def _asked(leased: Results) -> str:
    vault = "no Vault in this run" if leased["vault"] is None else f"Vault got {leased['vault']}"
    return f"{leased['uses']:,} uses: keys was asked {leased['asked']} times, {vault}"


def _provider_row(results: Results) -> Row:
    what, target = "a fresh data key by the keys RPC", "≤ 1.5 × Transit over hvac"
    calls = results["calls"]
    if "hvac" not in calls:
        return Row(what, target, "not measured: no Vault in this run", None)
    gross, direct = calls["create"]["p50_us"], calls["hvac"]["p50_us"]
    net = max(0.0, gross - calls["record"]["p50_us"]) / direct
    figure = f"{gross / direct:.2f} × (p50); {net:.2f} × net of making its record durable"
    return Row(what, target, figure, gross <= 1.5 * direct)


def _memory_row(large: Results) -> Row:
    return Row(
        f"a file of {_size(large['bytes'])} sealed, verified and read", "≤ 16 MiB of memory",
        f"{large['grown_mib']:.1f} MiB", large["grown_mib"] <= 16,
    )  # fmt: skip


def table(results: Results) -> str:
    """Return the page of a run."""
    machine, load = results["machine"], results["load_average"]
    lines = [
        f"# Sealing and keys, {results['when']}",
        "",
        (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['filesystem']}, Linux"
            f" {machine['kernel']}, Python {machine['python']}, grpcio {machine['grpcio']},"
            f" cryptography {machine['cryptography']}; provider {results['provider']}; fdatasync of"
            f" 4 KiB p50 {results['fdatasync_us']:.0f} µs; load average {load[0]:.2f} before,"
            f" {load[1]:.2f} after; medians of {results['rounds']} turns."
        ),
        "",
        "| promise | target | measured | |",
        "|---|---|---|---|",
    ]
    marks = {True: "met", False: "**not met**", None: "–"}
    lines += [
        f"| {row.what} | {row.target} | {row.figure} | {marks[row.met]} |" for row in rows(results)
    ]
    lines += [*_local(results["local"]), *_calls(results), *_transport(results["transport"])]
    return "\n".join([*lines, *_large(results["large"])]) + "\n"


_NAMES = {
    "entry": ("An audit entry of 1 KiB", "bare"),
    "object_1kib": ("An object of 1 KiB", "bare_encrypt"),
    "object_10mib": ("An object of 10 MiB", "bare_decrypt"),
    "package_10mib": ("A model package of 10 MiB", "bare_decrypt"),
}


def _local(local: Results) -> list[str]:
    lines = ["", "In process, processor time, in turns with the bare cipher of `cryptography`:", ""]
    lines += ["| | | µs | a second | × bare |", "|---|---|---:|---:|---:|"]
    for key, (title, bare) in _NAMES.items():
        for name, found in local[key].items():
            entries = 256 if name == "seal_batch" else 1
            each = found["seconds"] / entries
            ratio = each / local[key][bare]["seconds"]
            words = name.replace("_", " ") + (", each of 256" if entries > 1 else "")
            lines.append(
                f"| {title} | {words} | {each * 1e6:,.1f} | {1 / each:,.0f} | {ratio:.2f} |"
            )
    return lines


def _calls(results: Results) -> list[str]:
    names = {
        "create": "keys: a new branch key (recorded durably)",
        "open": "keys: open a wrapped one (recorded durably)",
        "bundle": "keys: the trust bundle (no record)",
        "hvac": "Vault Transit: data key, over hvac",
        "record": "making a record durable, in process",
    }
    lines = [
        "",
        "One call on its way, mutual TLS, at the caller; records stay in the spool:",
        "",
    ]
    lines += ["| | p50 µs | p99 µs |", "|---|---:|---:|"]
    lines += [
        f"| {names[name]} | {found['p50_us']:,.0f} | {found['p99_us']:,.0f} |"
        for name, found in results["calls"].items()
    ]
    lines += ["", f"A use of a leased key: {results['leased']['use_us']:.2f} µs."]
    return lines


def _transport(transport: Results) -> list[str]:
    lines = ["", "What mutual TLS costs a call, the same echo with and without:", ""]
    lines += ["| | plain p50 µs | mTLS p50 µs | × | plain CPU µs | mTLS CPU µs |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, pair in transport["calls"].items():
        plain, mtls = pair["plain"], pair["mtls"]
        lines.append(
            f"| echo of {name} | {plain['p50_us']:,.0f} | {mtls['p50_us']:,.0f} |"
            f" {mtls['p50_us'] / plain['p50_us']:.2f} | {plain['cpu_us']:,.0f} |"
            f" {mtls['cpu_us']:,.0f} |"
        )
    new = transport["new_channel_us"]
    lines.append(
        f"| new channel and first call | {new['plain']:,.0f} | {new['mtls']:,.0f} |"
        f" {new['mtls'] / new['plain']:.2f} | | |"
    )
    return lines


def _large(large: Results) -> list[str]:
    size = large["bytes"]
    speeds = {
        "sealed (generated, hashed, written, synced)": large["seal_seconds"],
        "verified, first pass": large["verify_seconds"],
        "verified again, released and hashed": large["release_seconds"],
    }
    lines = [
        "",
        f"A file of {_size(size)}, two passes, beside BLAKE2b of what goes in and out:",
        "",
    ]
    lines += ["| | s | MB/s |", "|---|---:|---:|"]
    return lines + [
        f"| {name} | {seconds:.1f} | {size / seconds / 1e6:,.0f} |"
        for name, seconds in speeds.items()
    ]


def _size(count: int) -> str:
    return f"{count / 2**30:g} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"
