"""Bare ONNX Runtime in a process of its own: what no server can beat.

python -m benchmarks.bare MODEL.onnx REQUEST SECONDS
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import percentile
from benchmarks.naive_server import session
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest


def main(model: Path, request: Path, seconds: float) -> None:
    run = session(model)
    tensor = ModelInferRequest.FromString(request.read_bytes())
    shape = list(tensor.inputs[0].shape)
    rows = np.frombuffer(tensor.raw_input_contents[0], np.float32).reshape(shape)
    feed = {run.get_inputs()[0].name: rows}
    for _ in range(1000):
        run.run(None, feed)
    taken: list[float] = []
    used = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        at = time.perf_counter()
        run.run(None, feed)
        taken.append((time.perf_counter() - at) * 1e6)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    print(
        json.dumps(
            {
                "per_second": len(taken) / wall,
                "latency_us": {"p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)},
                "cpu_us": cpu / len(taken) * 1e6,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
