"""The kernel's counters: CPU time and memory of process trees, sync time, the machine."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

_TICK = os.sysconf("SC_CLK_TCK")
_SYNC_BYTES = 4096


def tree(root: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    first = psutil.Process(root)
    return [first, *first.children(recursive=True)]


def pin(root: int, core: int) -> None:
    """Pin every thread of a tree to one core; threads and processes made later inherit it."""
    for process in tree(root):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {core})


def cpu_seconds(root: int) -> float:
    """User and system time of a tree since its start, that of ended children included."""
    total = 0
    for process in tree(root):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        # Fields 14 to 17 of proc_pid_stat(5); the first after the name is field 3.
        total += sum(int(field) for field in fields[11:15])
    return total / _TICK


def memory(root: int) -> dict[str, float]:
    """PSS of each process of a tree, by what it is, in MiB."""
    found: dict[str, float] = {}
    for process in tree(root):
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        name = _name(process.cmdline())
        found[name] = round(found.get(name, 0.0) + kib / 1024, 1)
    return found


def _name(command: list[str]) -> str:
    for word in command:
        if word.startswith(("services.", "sealward.", "benchmarks.")):
            return word
    # Valkey writes its address into its own command line.
    return Path(command[0].split()[0]).name if command and command[0] else "?"


def fdatasync_micros(folder: Path, times: int = 60) -> list[float]:
    """Microseconds of appending 4 KiB and fdatasync, on the file system of `folder`."""
    path = folder / ".fdatasync"
    block = os.urandom(_SYNC_BYTES)
    taken = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(times):
            began = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(descriptor)
        path.unlink()
    return taken


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[int(share * (len(ordered) - 1))]


def machine(folder: Path) -> dict[str, Any]:
    """Describe where the figures come from."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: len(mount.mountpoint))
    kinds = [m.fstype for m in mounts if folder.resolve().is_relative_to(m.mountpoint)]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": kinds[-1] if kinds else "?",
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("grpcio", "onnxruntime", "protobuf", "sealward")},
    }


def middle(values: list[float]) -> float:
    """The median, 0 for none."""
    return median(values) if values else 0.0


def pause(seconds: float) -> None:
    """Let what runs beside settle; nothing is measured meanwhile."""
    time.sleep(seconds)
