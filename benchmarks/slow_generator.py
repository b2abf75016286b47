"""The generator for machines without Go. Takes the flags of loadgen/main.go."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.measure import percentile
from sealward.client.connection import open_channel
from sealward.client.profile import Profile

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class State:
    """What the threads share."""

    measuring: bool = False
    stopping: bool = False
    errors: int = 0
    last: str = ""


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("address", "body", "profile", "servername", "token"):
        parser.add_argument(f"-{name}", default="")
    parser.add_argument("-inflight", type=int, default=1)
    parser.add_argument("-warm", default="0.5s")
    parser.add_argument("-measure", default="2s")
    parser.add_argument("-receipt", action="store_true")
    options = parser.parse_args()
    message = Path(options.body).read_bytes()
    bearer = ""
    if options.profile:
        profile = Profile.load(options.profile)
        channel = open_channel(profile, profile.material())
        bearer = f"Bearer {Path(options.token).read_text()}"
    else:
        channel = grpc.insecure_channel(options.address)
    call = channel.unary_unary(_METHOD)
    numbers = itertools.count(1)
    state = State()
    latencies: list[float] = []

    def work() -> None:
        while not state.stopping:
            metadata = (
                (("authorization", bearer), ("sealward-seq", str(next(numbers)))) if bearer else ()
            )
            began = time.perf_counter()
            try:
                _, rpc = call.with_call(message, timeout=20, metadata=metadata)
            except grpc.RpcError as error:
                state.errors += 1
                state.last = error.details() or ""
                time.sleep(0.01)
                continue
            took = (time.perf_counter() - began) * 1e6
            keys = {key for key, _ in rpc.trailing_metadata() or ()}
            if options.receipt and "sealward-receipt-bin" not in keys:
                state.errors += 1
                state.last = "answer without receipt"
            if state.measuring and not state.stopping:
                latencies.append(took)

    threads = [threading.Thread(target=work) for _ in range(options.inflight)]
    for thread in threads:
        thread.start()
    time.sleep(float(options.warm.rstrip("s")))
    used = resource.getrusage(resource.RUSAGE_SELF)
    state.measuring = True
    began = time.perf_counter()
    print("start", flush=True)
    time.sleep(float(options.measure.rstrip("s")))
    state.stopping = True
    seconds = time.perf_counter() - began
    print("stop", flush=True)
    after = resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.join()
    shares = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    print(
        json.dumps(
            {
                "in_flight": options.inflight,
                "connections": 1,
                "seconds": seconds,
                "calls": len(latencies),
                "errors": state.errors,
                "last_error": state.last,
                "per_second": len(latencies) / seconds,
                "latency_us": {
                    name: percentile(latencies, share) if latencies else -1.0
                    for name, share in shares.items()
                },
                "generator_cpu": (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
                / seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
