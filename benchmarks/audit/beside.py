"""Our engine and Tessera's in turns, each in a process and an empty folder of its own.

Ours runs without its index, since Tessera has none, and once more with it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.audit import rival

WRITERS = (1, 16, 256)
OURS, INDEXED, TESSERA, RECEIPTS = "ours", "ours_indexed", "tessera", "tessera_receipts"

Say = Callable[[str], None]


def run(scratch: Path, rounds: int, seconds: float, say: Say) -> dict[str, Any]:
    """Measure; return by number of writers the medians, the ratios and every round."""
    engines = _engines(rival.tessera(), seconds)
    raw: dict[int, list[dict[str, Any]]] = {writers: [] for writers in WRITERS}
    for turn in range(rounds):
        for writers in WRITERS:
            syncs = measure.fdatasync_micros(scratch, 30)
            point: dict[str, Any] = {"fdatasync_us": syncs}
            # Who goes first changes from round to round.
            for name in sorted(engines[writers], reverse=bool(turn % 2)):
                if name == RECEIPTS and turn:
                    # It waits for checkpoints, and hardly moves.
                    continue
                say(f"round {turn + 1} of {rounds}: {name}, {writers} writers")
                folder = scratch / "engine"
                folder.mkdir(mode=0o700)
                try:
                    point[name] = engines[writers][name](folder, writers)
                finally:
                    shutil.rmtree(folder)
            raw[writers].append(point)
    return {str(writers): _folded(points) for writers, points in raw.items()}


def _engines(binary: Path, seconds: float) -> dict[int, dict[str, Callable[[Path, int], Any]]]:
    def ours(*options: str) -> Callable[[Path, int], Any]:
        def run_(folder: Path, writers: int) -> Any:
            command = [sys.executable, "-m", "benchmarks.audit.engine", str(folder), str(writers)]
            command += [str(seconds), *options]
            return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

        return run_

    def tessera(age: str, *, receipts: bool) -> Callable[[Path, int], Any]:
        return lambda folder, writers: rival.run(
            binary, folder, writers, seconds, age, receipts=receipts
        )

    return {
        writers: {
            OURS: ours("noindex"),
            INDEXED: ours(),
            **{f"{TESSERA} {age}": tessera(age, receipts=False) for age in rival.AGES[writers]},
            RECEIPTS: tessera(rival.AGES[writers][0], receipts=True),
        }
        for writers in WRITERS
    }


def _folded(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Fold the rounds. In each, Tessera counts with the setting that served it best there."""
    ours = [point[OURS] for point in points]
    indexed = [point[INDEXED] for point in points]
    best = [_best(point) for point in points]
    receipts = [point[RECEIPTS] for point in points if RECEIPTS in point]
    syncs = [micros for point in points for micros in point["fdatasync_us"]]
    return {
        OURS: _medians(ours),
        INDEXED: _medians(indexed),
        TESSERA: _medians(best),
        RECEIPTS: _medians(receipts),
        "ratio": _ratio(ours, best),
        "ratio_indexed": _ratio(indexed, best),
        "ratio_receipts": _ratio(ours[: len(receipts)], receipts),
        "fdatasync_us": {
            "p50": measure.percentile(syncs, 0.5),
            "p99": measure.percentile(syncs, 0.99),
        },
        "raw": points,
    }


def _best(point: dict[str, Any]) -> Any:
    runs = [figures for name, figures in point.items() if name.startswith(f"{TESSERA} ")]
    return max(runs, key=lambda figures: figures["per_second"])


def _ratio(ours: list[Any], theirs: list[Any]) -> float:
    """The median of what each round gives: its two sides ran within seconds of each other."""
    pairs = zip(ours, theirs, strict=True)
    return measure.middle([a["per_second"] / b["per_second"] for a, b in pairs])


def _medians(points: list[Any]) -> dict[str, float]:
    return {key: measure.middle([point[key] for point in points]) for key in points[0]}
