"""How models are run on this machine, and its digest for the record.

The same model on the same input gives the same bits only under the same runtime: version of ONNX
Runtime, session options, threads, and the class of CPU, which decides what kernels are chosen.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

PROVIDER = "CPUExecutionProvider"

# Instruction sets that ONNX Runtime's kernels look at.
_FLAGS = frozenset(
    {
        "sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl",
        "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
        "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
    }
)  # fmt: skip
_CPU_KEYS = frozenset(
    {"vendor_id", "cpu family", "model", "CPU implementer", "CPU part", "CPU variant"}
)


@dataclass(frozen=True)
class RuntimeSpec:
    """The options of a session. One thread: small models lose by more, and bits stay the same."""

    threads: int = 1
    entries: tuple[tuple[str, str], ...] = (
        ("session.intra_op.allow_spinning", "0"),
        ("session.inter_op.allow_spinning", "0"),
        ("session.set_denormal_as_zero", "0"),
    )

    def options(self) -> Any:
        """Return the SessionOptions."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.use_deterministic_compute = True
        # Its log lines may quote shapes and names of a request; what failed is told by us.
        options.log_severity_level = 4
        for key, value in self.entries:
            options.add_session_config_entry(key, value)
        return options

    def digest(self, cpu: Mapping[str, str]) -> str:
        """SHA-256 over all of it, hexadecimal. `cpu` is what cpu_class() returns."""
        content = {
            "onnxruntime": onnxruntime.__version__,
            "provider": PROVIDER,
            "threads": self.threads,
            "execution_mode": "sequential",
            "graph_optimization": "all",
            "deterministic_compute": True,
            "entries": dict(self.entries),
            "cpu": dict(cpu),
        }
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()


def cpu_class(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return what names the class of this CPU: architecture, vendor, family, instruction sets."""
    found = {"architecture": platform.machine()}
    try:
        text = cpuinfo.read_text()
    except OSError:
        return found
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if key in _CPU_KEYS:
            found[key] = value
        elif key in {"flags", "Features"}:
            found["instructions"] = " ".join(sorted(_FLAGS & set(value.split())))
    return found


def quiet() -> None:
    """Keep ONNX Runtime from writing anything of its own."""
    onnxruntime.set_default_logger_severity(4)
    onnxruntime.disable_telemetry_events()
