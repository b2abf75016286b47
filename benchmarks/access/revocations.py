"""From a revocation to the last answer that its session got, at another gateway than was told.

Each session has a stream that is open and calls that follow one another without a pause, both at
the second gateway, from its cache. The first is told of the end. What counts is the time from
telling it to the end of the last call that was answered, and to the end of the stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from benchmarks.measure import percentile
from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.api.gateway.v1.gateway_pb2_grpc import LogServiceStub, SessionServiceStub
from sealward.cli.connect import Admin, open_channel, user_channel, user_material
from sealward.cli.processes import service_environ
from sealward.cli.rpc import error_info
from sealward.cli.suite import Suite, free_ports

_LONGEST_SECONDS = 30.0


def run(suite: Suite, user: str, password: str, count: int) -> dict[str, Any]:
    """Revoke this many sessions; return the times."""
    unary: list[float] = []
    streams: list[float] = []
    with (
        second_gateway(suite) as address,
        open_channel(user_material(suite, user), address, "gateway.sealward.local") as there,
        user_channel(suite, user) as here,
        Admin(suite).channel("gateway") as admin,
    ):
        for number in range(count):
            login = SessionServiceStub(here).Login(
                gw.LoginRequest(user=user, password=password), timeout=30
            )
            one, two = _revoke(there, admin, login)
            unary.append(one)
            streams.append(two)
            if number % 100 == 99:
                print(f"  {number + 1} revoked", file=sys.stderr, flush=True)
    return {"count": count, "unary": _shares(unary), "streams": _shares(streams)}


def _revoke(
    there: grpc.Channel, admin: grpc.Channel, login: gw.LoginResponse
) -> tuple[float, float]:
    metadata = (("authorization", f"Bearer {login.token}"),)
    stream = SessionServiceStub(there).WatchSession(gw.WatchSessionRequest(), metadata=metadata)
    next(stream)
    answered = threading.Event()
    last, ended = 0.0, 0.0
    refused: list[str] = []

    def call() -> None:
        nonlocal last
        consistency = LogServiceStub(there).GetConsistency
        while not refused:
            try:
                consistency(gw.GetConsistencyRequest(sizes=[1, 2]), metadata=metadata, timeout=10)
                last = time.monotonic()
                answered.set()
            except grpc.RpcError as error:
                refused.append(error_info(error)[0])

    def watch() -> None:
        nonlocal ended
        try:
            for _ in stream:
                pass
        except grpc.RpcError:
            ended = time.monotonic()

    threads = [threading.Thread(target=call), threading.Thread(target=watch)]
    for one in threads:
        one.start()
    if not answered.wait(_LONGEST_SECONDS):
        raise SystemExit(f"the session was never answered: {refused}")
    told = time.monotonic()
    SessionServiceStub(admin).RevokeSessions(
        gw.RevokeSessionsRequest(session_id=login.session_id), timeout=10
    )
    for one in threads:
        one.join(_LONGEST_SECONDS)
    if refused != ["SESSION_INVALID"] or not ended:
        raise SystemExit(f"the session did not end as it should: {refused}")
    return max(0.0, last - told), ended - told


def _shares(values: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {f"{name}_ms": percentile(values, share) * 1e3 for name, share in shares.items()}


@contextmanager
def second_gateway(suite: Suite) -> Iterator[str]:
    """Start another gateway beside that of a suite; give its address when it serves."""
    ports = free_ports(2)
    environ = {
        **service_environ(suite, "gateway", os.environ),
        "SEALWARD_GATEWAY_ADDRESS": f"127.0.0.1:{ports[0]}",
        "SEALWARD_GATEWAY_METRICS_ADDRESS": f"127.0.0.1:{ports[1]}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    log = suite.root.with_name("second-gateway.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.gateway"],
            env=environ, cwd=suite.root, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not any(line.get("event") == "started" for line in _lines(log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the second gateway does not start")
            time.sleep(0.02)
        yield f"127.0.0.1:{ports[0]}"
    finally:
        process.terminate()
        process.wait(30)


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue
