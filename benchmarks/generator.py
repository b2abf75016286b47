"""The load generator: a small Go program, or a Python one where there is no Go.

Both speak the same way: a line `start`, a line `stop` around the measured time, then JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gobuild import build

_TOLERATED = 0.1
"""Share of calls that may fail before a run says nothing any more; any at all is reported."""

_SOURCE = Path(__file__).parent / "loadgen"


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go. `profile` is a client folder with a session, None for plaintext."""

    name: str
    address: str
    server_name: str = ""
    profile: Path | None = None


class Generator:
    """Runs the generator, pinned to one core."""

    def __init__(self, core: int) -> None:
        self._core = core
        self.command, self.kind = _build()

    def run(
        self,
        target: Target,
        body: Path,
        in_flight: int,
        *,
        warm: float,
        seconds: float,
        sample: Callable[[], float],
    ) -> dict[str, Any]:
        """Load a target; return its figures, with `sample` read at start and stop (CPU seconds)."""
        command = [*self.command, "-address", target.address, "-body", str(body)]
        command += ["-inflight", str(in_flight), "-warm", f"{warm}s", "-measure", f"{seconds}s"]
        if target.profile is not None:
            command += ["-profile", str(target.profile), "-servername", target.server_name]
            command += ["-token", str(target.profile / "session"), "-receipt"]
        core = self._core
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        ) as process:
            assert process.stdout is not None
            before = after = 0.0
            result: dict[str, Any] = {}
            for line in process.stdout:
                if line == "start\n":
                    before = sample()
                elif line == "stop\n":
                    after = sample()
                else:
                    result = json.loads(line)
        if process.returncode or not result or not result["calls"]:
            raise SystemExit(f"the generator failed against {target.name}: {result}")
        if result["errors"] > _TOLERATED * result["calls"]:
            raise SystemExit(f"{target.name} answered with errors: {result['last_error']}")
        result["cpu_us"] = (after - before) / result["calls"] * 1e6
        return result


def _build() -> tuple[Sequence[str], str]:
    """Return the generator's command and what it is."""
    binary = build(_SOURCE, "loadgen")
    if binary is not None:
        return [str(binary)], "Go"
    print(
        "WARNING: no Go toolchain; the generator in Python is so heavy that it hides part of"
        " the difference between the servers. Install Go 1.24 or later for figures that count.",
        file=sys.stderr,
    )
    return [sys.executable, "-m", "benchmarks.slow_generator"], "Python"
