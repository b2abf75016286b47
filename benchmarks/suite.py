"""The suite under load: a real `sealward up` in a folder of its own, driven by the command line."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import grpc

from benchmarks.generator import Target
from sealward.cli.suite import Suite
from sealward.client import Client, UnavailableError

MODEL = "breast-cancer"
SHIPPED = Path(__file__).parent.parent / "services" / "inference" / "shipped" / MODEL
_USER = "bench"
_FIRST_ANSWER_SECONDS = 60.0


class SuiteUnderLoad:
    """Starts and ends the suite; one clinician who is logged in."""

    def __init__(self, folder: Path) -> None:
        self.suite = Suite.at(folder)
        self._password = secrets.token_urlsafe(18)
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    @property
    def profile(self) -> Path:
        """The client folder of the clinician."""
        return self.suite.clients / _USER

    def begin(self) -> float:
        """Start in an empty folder and add the clinician; return seconds until ready."""
        began = time.perf_counter()
        self._sealward("up", "--detach")
        ready = time.perf_counter() - began
        password = self.suite.secrets / "bench-password"
        password.write_text(self._password)
        password.chmod(0o600)
        try:
            self._sealward(
                "user", "add", _USER, "--role", "clinician", "--password-file", str(password)
            )
        finally:
            password.unlink()
        return ready

    def restart(self, request: dict[str, list[list[float]]]) -> float:
        """Stop, start again, and return seconds from the command to the first verified answer."""
        self.end()
        began = time.perf_counter()
        command = self._command("up", "--detach")
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as starting:
            taken = self._first_answer(request, began)
            if starting.wait() != 0:
                raise SystemExit("the suite did not start")
        return taken

    def _first_answer(self, request: dict[str, list[list[float]]], began: float) -> float:
        import numpy as np

        inputs = {name: np.array(rows, np.float32) for name, rows in request.items()}
        last: Exception | None = None
        while time.perf_counter() - began < _FIRST_ANSWER_SECONDS:
            try:
                with Client.from_profile(self.profile, consistency_interval=3600) as client:
                    client.login(self._password)
                    client.infer(MODEL, inputs)
                return time.perf_counter() - began
            except UnavailableError as error:
                last = error
            time.sleep(0.02)
        raise SystemExit(f"the suite gave no answer: {last}")

    def login(self) -> None:
        """Log the clinician in."""
        with self.client() as client:
            client.login(self._password)

    def client(self) -> Client:
        """A client with the session."""
        return Client.from_profile(self.profile, consistency_interval=3600)

    def target(self) -> Target:
        """Where the generator goes."""
        with self.client() as client:
            found = client.profile
        return Target("sealward (grpcio)", found.gateway, found.server_name, self.profile)

    def root_pid(self) -> int:
        """The supervisor."""
        pid = self.suite.supervisor_pid()
        if pid is None:
            raise SystemExit("the suite is not running")
        return pid

    def end(self) -> None:
        """Stop the suite."""
        self._sealward("down")

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sealward.cli.main", *words, "--dir", str(self.suite.root)]

    def _sealward(self, *words: str) -> None:
        done = subprocess.run(
            self._command(*words),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"sealward {words[0]} failed:\n{done.stdout}")


def naive(model: Path, port: int, core: int) -> subprocess.Popen[bytes]:
    """Start the naive server, pinned to one core."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.naive_server", str(model), str(port)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
    )


def wait_for_naive(address: str, body: bytes) -> float:
    """Return seconds until the naive server's first answer."""
    began = time.perf_counter()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while time.perf_counter() - began < _FIRST_ANSWER_SECONDS:
            with contextlib.suppress(grpc.RpcError):
                call(body, timeout=5)
                return time.perf_counter() - began
            time.sleep(0.01)
    raise SystemExit("the naive server gave no answer")
