"""What the audit log is to reach, and whether a run of the benchmark shows it. Nothing fails here.

The figures move with the machine and with what else runs on it; ratios do less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """One figure. `at_least`: more is better; else less is. `read` takes it from the results."""

    name: str
    limit: float
    unit: str
    at_least: bool
    part: str
    read: Callable[[Any], float]

    def met(self, measured: float) -> bool:
        """Tell whether a measured figure reaches it."""
        return measured >= self.limit if self.at_least else measured <= self.limit


def _ratio(writers: int, limit: float) -> Target:
    return Target(
        f"durable appends with a receipt, {writers} writer{'s' * (writers > 1)}, beside Tessera",
        limit, "×", True, "engine", lambda part: part[str(writers)]["ratio"],
    )  # fmt: skip


def _best_rate(part: Any) -> float:
    return max(float(row["per_second"]) for row in part.values())


TARGETS = (
    _ratio(1, 3),
    _ratio(16, 5),
    _ratio(256, 2),
    Target(
        "Append through gRPC with mTLS, 256 in flight", 3000, "entries/s", True, "append",
        lambda part: part["256"]["per_second"],
    ),
    Target("OTLP spans, durable", 20_000, "spans/s", True, "otlp", _best_rate),
    Target(
        "OTLP spans acknowledged and not in the log", 0, "", False, "otlp",
        lambda part: sum(row["lost"] for row in part.values()),
    ),
    Target(
        "verification of 1,000,000 entries, command line", 8, "s", False, "million",
        lambda part: part["verify"]["seconds"] * 1e6 / part["verify"]["entries"],
    ),
    Target(
        "accounting of one patient in 1,000,000 events, with proofs", 100, "ms", False, "million",
        lambda part: part["accounting_ms"]["p50"],
    ),
    Target(
        "report of every access to one patient, with proofs", 100, "ms", False, "million",
        lambda part: part["access_ms"]["p50"],
    ),
    Target(
        "memory of the audit process at 1,000,000 entries (PSS)", 150, "MiB", False, "million",
        lambda part: max(part["memory_mib"], part["memory_after_restart_mib"]),
    ),
)  # fmt: skip


def judge(results: Results) -> list[dict[str, Any]]:
    """Return each target whose part was measured, with the figure and whether it is met."""
    judged = []
    for target in TARGETS:
        part = results.get(target.part)
        if part is None:
            continue
        if target.part == "million" and part["events"] < 1_000_000:
            continue
        measured = target.read(part)
        row = {key: value for key, value in asdict(target).items() if key != "read"}
        judged.append({**row, "measured": measured, "met": target.met(measured)})
    return judged
