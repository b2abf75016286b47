"""Logins as fast as they come, of several users at once: `python -m benchmarks.access.flood`.

A process of its own and of low priority, as far as one machine can play two. It prints what was
answered: logins, and refusals by reason.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.gateway.v1.gateway_pb2_grpc import SessionServiceStub
from sealward.cli.connect import user_channel
from sealward.cli.rpc import error_info
from sealward.cli.suite import Suite

_THREADS_EACH = 3
_PAUSE_SECONDS = 0.05


def main() -> int:
    folder, seconds, password, *users = sys.argv[1:]
    os.nice(15)
    suite = Suite.at(Path(folder))
    until = time.monotonic() + float(seconds)
    found: Counter[str] = Counter()
    taken: list[float] = []
    lock = threading.Lock()

    def work(user: str) -> None:
        with user_channel(suite, user) as channel:
            stub = SessionServiceStub(channel)
            while time.monotonic() < until:
                began = time.perf_counter()
                try:
                    stub.Login(gw.LoginRequest(user=user, password=password), timeout=30)
                    said = "logins"
                except grpc.RpcError as error:
                    said = error_info(error)[0] or "failed"
                with lock:
                    found[said] += 1
                    if said == "logins":
                        taken.append(time.perf_counter() - began)
                if said != "logins":
                    time.sleep(_PAUSE_SECONDS)

    threads = [
        threading.Thread(target=work, args=(user,)) for user in users for _ in range(_THREADS_EACH)
    ]
    began = time.monotonic()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    print(json.dumps({**found, "seconds": time.monotonic() - began, "latencies": sorted(taken)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
