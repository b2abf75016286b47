"""What mutual TLS costs a call: one echo over plaintext and over our certificates, in turns.

    python -m benchmarks.keys.transport FOLDER      the server, both ports; FOLDER has `enroll`

Plaintext exists here alone, for comparison; no service of ours has such a port.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks.audit.services import Services
from benchmarks.measure import cpu_seconds, middle, percentile
from sealward.kit.channel import OPTIONS
from sealward.kit.enroll import enroll
from sealward.kit.tls import Credentials

_METHOD = "/benchmark/Echo"
_SERVER = "audit.sealward.local"
_PAYLOADS = {"1 KiB": 1 << 10, "1 MiB": 1 << 20}
_OPENED = 30


def run(services_: Services, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure; the keys process of `services_` is running and issues the certificates."""
    credentials = services_.credentials("gateway")
    command = [sys.executable, "-m", "benchmarks.keys.transport", str(services_.folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        ports = json.loads(server.stdout.readline())
        dial: dict[str, Callable[[], grpc.Channel]] = {
            "plain": lambda: grpc.insecure_channel(f"127.0.0.1:{ports['plain']}", OPTIONS),
            "mtls": lambda: grpc.secure_channel(
                f"127.0.0.1:{ports['mtls']}",
                credentials.channel(),
                [*OPTIONS, ("grpc.ssl_target_name_override", _SERVER)],
            ),
        }
        return {
            "calls": {
                name: _calls(dial, size, server.pid, rounds, seconds)
                for name, size in _PAYLOADS.items()
            },
            "new_channel_us": {name: _opened(make) for name, make in dial.items()},
        }
    finally:
        server.communicate()


def _calls(
    dial: dict[str, Callable[[], grpc.Channel]],
    size: int,
    server: int,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    channels = {name: make() for name, make in dial.items()}
    payload = os.urandom(size)
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in channels}
    for channel in channels.values():
        _measure(channel, payload, server, 0.2)
    for turn in range(rounds):
        for name in sorted(channels, reverse=bool(turn % 2)):
            raw[name].append(_measure(channels[name], payload, server, seconds))
    for channel in channels.values():
        channel.close()
    return {
        name: {
            **{key: middle([point[key] for point in points]) for key in points[0]},
            "raw": points,
        }
        for name, points in raw.items()
    }


def _measure(
    channel: grpc.Channel, payload: bytes, server: int, seconds: float
) -> dict[str, float]:
    echo = channel.unary_unary(_METHOD)
    taken: list[float] = []
    used, ends = cpu_seconds(server) + time.process_time(), time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends:
        echo(payload, timeout=20, wait_for_ready=True)
        taken.append((time.perf_counter() - began) * 1e6)
    used = cpu_seconds(server) + time.process_time() - used
    return {
        "p50_us": percentile(taken, 0.5),
        "p99_us": percentile(taken, 0.99),
        "cpu_us": used / len(taken) * 1e6,
    }


def _opened(make: Callable[[], grpc.Channel]) -> float:
    """Median time to a new channel's first answer, in microseconds."""
    taken = []
    for _ in range(_OPENED):
        began = time.perf_counter()
        with make() as channel:
            channel.unary_unary(_METHOD)(b"", timeout=20, wait_for_ready=True)
            taken.append((time.perf_counter() - began) * 1e6)
    return percentile(taken, 0.5)


class _Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != _METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


def _serve(folder: Path) -> None:
    credentials = Credentials()
    credentials.install(enroll(folder / "enroll", "audit", 20))
    server = grpc.server(ThreadPoolExecutor(4), handlers=[_Echo()], options=OPTIONS)
    ports = {
        "plain": server.add_insecure_port("127.0.0.1:0"),
        "mtls": server.add_secure_port("127.0.0.1:0", credentials.server()),
    }
    server.start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
