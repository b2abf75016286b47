"""Runs the processes of a suite on one machine: starts, watches, restarts and drains them.

One thread, standard library only: it lives as long as the suite and should cost next to nothing.
`sealward up` starts it as `python -m sealward.cli.supervisor --dir DIR`. It owns the folder's lock;
its children end with it, however it ends. With --attached it drains the suite when its standard
input closes, that is, when the command that started it is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealward.cli.errors import CliError
from sealward.cli.processes import VALKEY, Spec, specs
from sealward.cli.suite import Suite, write_private

STOP_ORDER = (("gateway",), ("inference",), ("audit",), ("keys",), (VALKEY,))
"""Who goes first: nobody may lose a service that it still needs for its last calls."""

BACKOFF_FIRST = 0.1
BACKOFF_MOST = 10.0
STABLE_SECONDS = 30.0
"""A child that ran this long starts over with the shortest backoff."""

ALREADY_RUNNING = 75
"""Exit status when another supervisor holds the folder (EX_TEMPFAIL)."""

_TICK_SECONDS = 5.0
_RENEW_RETRY_SECONDS = 30.0
_LARGEST_LOG = 16 << 20
_PR_SET_PDEATHSIG = 1


def backoff(failures: int) -> float:
    """Return the seconds to wait before the start that follows this many failures in a row."""
    return min(BACKOFF_MOST, BACKOFF_FIRST * float(2 ** max(0, min(failures, 20) - 1)))


@dataclass(slots=True)
class Child:
    """One supervised process and its history."""

    spec: Spec
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started: float = 0.0
    failures: int = 0
    restarts: int = 0
    next_start: float = 0.0
    last_exit: int | None = None

    def ended(self, now: float) -> None:
        """Note that the process has ended by itself and when it is to start again."""
        if now - self.started >= STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        self.restarts += 1
        self.next_start = now + backoff(self.failures)

    def as_json(self) -> dict[str, Any]:
        """Return what status shows of it."""
        return {
            "pid": self.process.pid if self.process else None,
            "state": "running" if self.process else "restarting",
            "restarts": self.restarts,
            "last_exit": self.last_exit,
        }


class Supervisor:
    """The loop. `run` returns when the suite was asked to end and has ended."""

    def __init__(self, suite: Suite, children: Sequence[Spec], log: Callable[..., None]) -> None:
        self._suite = suite
        self._log = log
        self._children = {spec.name: Child(spec) for spec in children}
        self._selector = selectors.DefaultSelector()
        self._renewal: subprocess.Popen[bytes] | None = None
        # The trust bundle that certificates here were last renewed with, and the one under way.
        self._bundle = self._coming = b""
        self._renew_not_before = 0.0
        self._began = 0.0
        self._stopping = False

    def run(self, attached: bool = False) -> None:
        """Start every process and keep it running until SIGTERM, SIGINT or the end of stdin."""
        self._catch_signals()
        if attached:
            self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._on_stdin)
        self._began = time.monotonic()
        try:
            while not self._stopping:
                self._start_due()
                self._housekeeping()
                for key, _ in self._selector.select(self._patience()):
                    key.data()
        finally:
            self._drain()

    # --- starting and restarting -------------------------------------------------------------

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.process is None and child.next_start <= now:
                self._start(child, now)

    def _start(self, child: Child, now: float) -> None:
        spec = child.spec
        if spec.name == VALKEY:
            self._suite.socket.unlink(missing_ok=True)
        child.started = now
        try:
            child.process = self._spawn(spec.argv, spec.environ, spec.name)
        except OSError as error:
            self._log("start.failed", name=spec.name, errno=error.errno)
            child.ended(now)
            self._write_state()
            return
        child.pidfd = os.pidfd_open(child.process.pid)
        self._selector.register(
            child.pidfd, selectors.EVENT_READ, lambda child=child: self._on_exit(child)
        )
        self._log("started", name=spec.name, pid=child.process.pid)
        self._write_state()

    def _spawn(self, argv: Sequence[str], environ: Any, name: str) -> subprocess.Popen[bytes]:
        # JSON lines go to one file; what libraries print in their own way to another.
        with (
            _open_log(self._suite.logs / f"{name}.log") as output,
            _open_log(self._suite.logs / f"{name}.stderr") as errors,
        ):
            return subprocess.Popen(
                argv,
                env=dict(environ),
                cwd=self._suite.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                # Ctrl-C in the terminal is for the supervisor, which drains in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one thread, nothing is locked
            )

    def _on_exit(self, child: Child) -> None:
        process = child.process
        if process is None or process.poll() is None:
            return
        self._forget(child)
        child.last_exit = process.returncode
        child.ended(time.monotonic())
        self._log(
            "ended", name=child.spec.name, pid=process.pid, exit=process.returncode,
            restart_seconds=round(child.next_start - time.monotonic(), 2),
        )  # fmt: skip
        self._write_state()

    def _forget(self, child: Child) -> None:
        if child.pidfd >= 0:
            self._selector.unregister(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1
        child.process = None

    def _patience(self) -> float:
        now = time.monotonic()
        waiting = [c.next_start - now for c in self._children.values() if c.process is None]
        return max(0.0, min([_TICK_SECONDS, *waiting]))

    # --- what is done now and then -----------------------------------------------------------

    def _housekeeping(self) -> None:
        if self._renewal is not None and self._renewal.poll() is not None:
            self._log("renewal", exit=self._renewal.returncode)
            if self._renewal.returncode == 0:
                self._bundle = self._coming
            self._renewal = None
        now = time.monotonic()
        if self._renewal is None and self._renewal_due(now):
            self._renew_not_before = now + _RENEW_RETRY_SECONDS
            self._coming = self._read_bundle()
            argv = (
                sys.executable,
                "-P",
                "-m",
                "sealward.cli.renew",
                "--dir",
                str(self._suite.root),
            )
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            with contextlib.suppress(OSError):
                self._renewal = self._spawn(argv, environ, "supervisor")
        for name in self._children:
            _rotate(self._suite.logs / f"{name}.log")
            _rotate(self._suite.logs / f"{name}.stderr")

    def _read_bundle(self) -> bytes:
        try:
            return self._suite.bundle_file.read_bytes()
        except OSError:
            return self._bundle

    def _renewal_due(self, now: float) -> bool:
        # A changed trust bundle goes to everybody at once: the authority is being replaced.
        found = self._read_bundle()
        self._bundle = self._bundle or found
        if found not in (self._bundle, self._coming):
            return True
        if now < self._renew_not_before:
            return False
        if found != self._bundle:
            return True
        try:
            return time.time() >= float(self._suite.renewal_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            # The first renewal is the work of the command that starts us.
            return time.monotonic() >= self._began + 2 * _RENEW_RETRY_SECONDS

    def _write_state(self) -> None:
        state = {
            "pid": os.getpid(),
            "stopping": self._stopping,
            "processes": {name: child.as_json() for name, child in self._children.items()},
        }
        try:
            write_private(self._suite.state_file, json.dumps(state).encode())
        except OSError as error:
            # A full disk must not end the supervisor: what it watches may still be healthy.
            self._log("state.unwritten", errno=error.errno)

    # --- the end -----------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop())
        self._selector.register(reading, selectors.EVENT_READ, lambda: os.read(reading, 4096))

    def _on_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            self._selector.unregister(sys.stdin.fileno())
            self._stop()

    def _stop(self) -> None:
        self._stopping = True

    def _drain(self) -> None:
        self._log("stopping")
        self._write_state()
        if self._renewal is not None:
            self._renewal.kill()
            self._renewal.wait()
        rest = [name for name in self._children if all(name not in group for group in STOP_ORDER)]
        for group in (*STOP_ORDER, rest):
            ending = [c for name in group if (c := self._children.get(name)) and c.process]
            for child in ending:
                _signal(child, signal.SIGTERM)
            for child in ending:
                self._await(child)
        self._log("stopped")

    def _await(self, child: Child) -> None:
        process = child.process
        if process is None:
            return
        try:
            process.wait(child.spec.stop_seconds)
        except subprocess.TimeoutExpired:
            self._log("killed", name=child.spec.name, pid=process.pid)
            _signal(child, signal.SIGKILL)
            process.wait()
        child.last_exit = process.returncode
        self._forget(child)
        self._write_state()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process is not None:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)


_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child, before exec: be killed when the supervisor is, even by kill -9."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        os._exit(1)


def _open_log(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _rotate(path: Path) -> None:
    """Move the lines of a log that has grown large into `<name>.1`.

    The process keeps its descriptor, opened for appending, so the file is copied and cut to zero.
    """
    try:
        if path.stat().st_size < _LARGEST_LOG:
            return
        with path.open("r+b") as file:
            write_private(path.with_name(f"{path.name}.1"), file.read())
            file.truncate(0)
    except OSError:
        return


def _logger(name: str) -> Callable[..., None]:
    def log(event: str, **fields: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"event": event, "service": name, "time": now, **fields}
        with contextlib.suppress(OSError):
            print(json.dumps(line), flush=True)  # noqa: T201 - standard output is the log

    return log


def acquire(suite: Suite) -> bool:
    """Lock the folder for as long as this process lives; False when another holds it."""
    descriptor = os.open(suite.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the supervisor of a folder that `sealward up` has prepared."""
    parser = argparse.ArgumentParser(prog="sealward-supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--attached", action="store_true")
    arguments = parser.parse_args(argv)
    os.umask(0o077)
    suite = Suite.at(arguments.dir)
    log = _logger("supervisor")
    if not acquire(suite):
        return ALREADY_RUNNING
    try:
        Supervisor(suite, specs(suite, os.environ), log).run(attached=arguments.attached)
    except CliError as error:
        log("start.refused", message=error.message, advice=error.advice)
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
