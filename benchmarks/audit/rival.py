"""Tessera's POSIX driver, the reference engine for tlog-tiles, as a Go program beside ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gobuild import build

AGES = {1: ("100us", "1ms"), 16: ("5ms", "1ms"), 256: ("5ms", "20ms")}
"""How long a batch may wait to fill, by number of writers: the settings that served it best."""

_SOURCE = Path(__file__).parent.parent / "rivals" / "tessera"


def tessera() -> Path:
    """Return the program; SystemExit where there is no Go."""
    binary = build(_SOURCE, "tessera")
    if binary is None:
        raise SystemExit("the rival is written in Go: install Go 1.24 or later")
    return binary


def run(
    binary: Path, folder: Path, writers: int, seconds: float, age: str, *, receipts: bool
) -> Any:
    """Measure it in an empty folder; `receipts`: each writer waits for its inclusion proof."""
    command = [str(binary), "-dir", str(folder), "-writers", str(writers), "-batch-age", age]
    command += ["-seconds", str(seconds)]
    if receipts:
        command.append("-receipts")
    done = subprocess.run(command, check=True, capture_output=True)
    return json.loads(done.stdout)
