"""`sealward up` and `sealward down`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Self

import typer

from sealward.cli.bootstrap import FIRST_ADMIN, first_admin, make_unlock_secret
from sealward.cli.errors import CliError, Exit, unavailable, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, line
from sealward.cli.processes import PKCS11_MODULE, services_roots, valkey_binary
from sealward.cli.provider import VaultChoice, choose, uses_vault
from sealward.cli.readiness import Readiness
from sealward.cli.store import StoreChoice, choose_store, has_own_store
from sealward.cli.suite import SERVICES, Suite, port_is_free

if TYPE_CHECKING:
    from sealward.kit.tls import Material

READY_SECONDS = 60.0
STOP_SECONDS = 75.0
_POLL_SECONDS = 0.02
_GIVE_UP_AFTER = 3


def up(
    directory: Dir = DEFAULT,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything is ready.")
    ] = False,
    vault: Annotated[
        str,
        typer.Option(
            "--vault", metavar="URL", help="Keep the keys in this Vault (several: with commas)."
        ),
    ] = "",
    vault_credentials: Annotated[
        Path | None,
        typer.Option(
            "--vault-credentials", metavar="DIR", help="Login to it, of `sealward vault setup`."
        ),
    ] = None,
    vault_ca: Annotated[
        Path | None, typer.Option("--vault-ca", metavar="FILE", help="PEM to verify Vault with.")
    ] = None,
    vault_namespace: Annotated[
        str, typer.Option("--vault-namespace", metavar="NAME", help="Namespace in Vault.")
    ] = "",
    redis: Annotated[
        str,
        typer.Option(
            "--redis",
            metavar="URL",
            help="Keep sessions in this server, rediss://USER@HOST:PORT; or `embedded`.",
        ),
    ] = "",
    redis_credentials: Annotated[
        Path | None,
        typer.Option(
            "--redis-credentials",
            metavar="DIR",
            help="Its `password`; ca.pem, cert.pem and key.pem where they are not Sealward's own.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the whole suite on this machine and keep it running until Ctrl-C.

    Where the keys are is decided the first time and kept in the folder; where sessions are can
    be changed with each start.
    """
    suite = Suite.at(directory)
    running = suite.supervisor_pid()
    choice = VaultChoice(vault, vault_credentials, vault_ca, vault_namespace)
    store = StoreChoice(redis, redis_credentials)
    if running is not None:
        if choice or store:
            raise usage(f"the suite in {suite.root} is running", "stop it first: sealward down")
        line(f"the suite in {suite.root} is already running (process {running})", err=True)
        emit(suite.endpoints(), as_json=as_json, text=addresses(suite))
        return
    with (
        start(suite, detach=detach, quiet=as_json, vault=choice, store=store) as started,
        suppress(KeyboardInterrupt),
    ):
        # Ctrl-C from here on is the wanted end: leaving the block drains the suite.
        emit(started.as_json(), as_json=as_json, text=started.as_text())
        if not detach:
            started.wait()


def down(directory: Dir = DEFAULT, as_json: Json = False) -> None:
    """Drain and stop the suite. Stopping a suite that does not run is fine."""
    suite = Suite.at(directory)
    was_running = stop(suite)
    emit(
        {"stopped": was_running},
        as_json=as_json,
        text="stopped" if was_running else f"the suite in {suite.root} is not running",
    )


def stop(suite: Suite, seconds: float = STOP_SECONDS) -> bool:
    """Drain the suite and wait for its end; False when it was not running."""
    pid = suite.supervisor_pid()
    if pid is None:
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The number may have been given to another process before we held it.
        if suite.supervisor_pid() == pid:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + seconds
    while suite.supervisor_pid() == pid:
        if time.monotonic() > deadline:
            raise unavailable(
                f"the suite did not stop within {seconds:.0f} s", f"see {suite.logs}/supervisor.log"
            )
        time.sleep(_POLL_SECONDS)
    return True


class Started:
    """A suite that this command started. Leaving the block ends it unless it is detached."""

    def __init__(
        self, suite: Suite, supervisor: subprocess.Popen[bytes], *, detached: bool
    ) -> None:
        self.suite = suite
        self.seconds = 0.0
        self.password = ""
        self._supervisor = supervisor
        self._detached = detached
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not (self._detached and self._ready):
            self.close()

    def ready(self, seconds: float, password: str) -> None:
        """Note that everything serves."""
        self.seconds, self.password, self._ready = seconds, password, True

    def wait(self) -> None:
        """Wait for Ctrl-C, SIGTERM or the end of the supervisor."""
        line("Ctrl-C stops it", err=True)
        code = self._supervisor.wait()
        if code != 0:
            raise CliError(
                f"the supervisor ended with status {code}",
                advice=f"see {self.suite.logs}/supervisor.log",
            )

    def check_alive(self) -> None:
        """Raise CliError when the supervisor has ended."""
        code = self._supervisor.poll()
        if code is not None:
            _, line_ = last_refusal(self.suite.logs / "supervisor.log")
            raise unavailable(
                line_ or f"the supervisor ended with status {code}",
                f"see {self.suite.logs}/supervisor.log",
            )

    def close(self) -> None:
        """Drain the suite and wait for its end."""
        if self._supervisor.poll() is None:
            line("stopping …", err=True)
            self._supervisor.send_signal(signal.SIGTERM)
        _patiently(self._supervisor)
        if self._supervisor.stdin is not None:
            self._supervisor.stdin.close()

    def as_json(self) -> dict[str, Any]:
        """Return what `up --json` prints."""
        result: dict[str, Any] = {
            "dir": str(self.suite.root),
            "seconds": round(self.seconds, 2),
            "endpoints": self.suite.endpoints(),
        }
        if self.password:
            result["first_admin"] = {"user": FIRST_ADMIN, "one_time_password": self.password}
        return result

    def as_text(self) -> str:
        """Return what `up` prints."""
        text = f"ready in {self.seconds:.1f} s\n{addresses(self.suite)}"
        if self.password:
            text += (
                f"\nfirst administrator: {FIRST_ADMIN}, one-time password: {self.password}"
                f"\n  (shown once; until it is used it is also in {self.suite.admin_password_file})"
            )
        return text


def start(
    suite: Suite,
    *,
    detach: bool = False,
    quiet: bool = False,
    vault: VaultChoice | None = None,
    store: StoreChoice | None = None,
) -> Started:
    """Prepare the folder, start the supervisor and wait until everything serves.

    Raise CliError, and leave nothing running, when it does not.
    """
    began = time.monotonic()
    prepare(suite, vault, store)
    started = Started(suite, _spawn(suite, detach=detach), detached=detach)
    # A terminating signal has to end the suite as Ctrl-C does.
    _raise_on_term()
    try:
        material = _await_ready(started, began, quiet=quiet)
        password = first_admin(suite, material)
        from sealward.cli.renew import renew

        renew(suite, material)
    except BaseException:
        started.close()
        raise
    started.ready(time.monotonic() - began, password)
    return started


def prepare(
    suite: Suite, vault: VaultChoice | None = None, store: StoreChoice | None = None
) -> None:
    """Make folders, addresses and what opens the keys; raise CliError when one cannot be had."""
    os.umask(0o077)
    environ = os.environ
    # Before anything is written: a client's machine has no services to start.
    services_roots()
    embedded = has_own_store(suite, environ) and not (store and store.url)
    if embedded or (store and store.url == "embedded"):
        valkey_binary()
    suite.create(environ)
    choose_store(suite, store or StoreChoice())
    choose(suite, vault or VaultChoice(), environ)
    elsewhere = environ.get("SEALWARD_KEYS_UNLOCK_FILE") or environ.get(PKCS11_MODULE)
    if not (elsewhere or uses_vault(suite, environ)):
        make_unlock_secret(suite)
    for name, places in suite.endpoints().items():
        for kind in ("address", "metrics"):
            host, _, port = places[kind].rpartition(":")
            if not port_is_free(int(port), host.strip("[]")):
                raise unavailable(
                    f"{places[kind]} ({name}, {kind}) is in use by another process",
                    f"stop that process, or remove {suite.endpoints_file} to have new addresses"
                    " chosen (clients then need new profiles)",
                )
    suite.state_file.unlink(missing_ok=True)
    suite.renewal_file.unlink(missing_ok=True)
    for left in suite.enroll_dir.iterdir():
        left.unlink()


def addresses(suite: Suite) -> str:
    """Return the addresses of a suite as lines of text."""
    endpoints = suite.endpoints()
    lines = [f"  {name:<10} {endpoints[name]['address']}" for name in reversed(SERVICES)]
    lines.append(f"  {'audit log':<10} {suite.log_dir}")
    return "\n".join(lines)


def last_refusal(path: Path) -> tuple[str, str]:
    """Return event and reason of the last line of a log that says why a start was refused."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().splitlines()
    except OSError:
        return "", ""
    for raw in reversed(lines):
        try:
            found = json.loads(raw)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("event") == "start.refused":
            return "start.refused", str(found.get("reason") or found.get("message") or "")
    return "", ""


def _spawn(suite: Suite, *, detach: bool) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-m", "sealward.cli.supervisor", "--dir", str(suite.root)]
    if not detach:
        argv.append("--attached")
    environ = dict(os.environ)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_library_root(), *_python_path()]))
    with _append(suite.logs / "supervisor.log") as output:
        return subprocess.Popen(
            argv,
            env=environ,
            cwd=suite.root,
            stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _library_root() -> str:
    import sealward

    return str(Path(sealward.__path__[0]).parent)


def _python_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def _append(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _await_ready(started: Started, began: float, *, quiet: bool) -> Material:
    suite = started.suite
    watch = Readiness(suite, READY_SECONDS)
    watch.start()
    shown: set[str] = set()
    try:
        while not watch.done.wait(_POLL_SECONDS):
            started.check_alive()
            for name in watch.serving - shown:
                if not quiet:
                    line(f"  {name:<10} ready after {time.monotonic() - began:.1f} s", err=True)
                shown.add(name)
            _check_children(suite)
            if time.monotonic() - began > READY_SECONDS:
                missing = [name for name in SERVICES if name not in watch.serving]
                raise unavailable(
                    f"not ready after {READY_SECONDS:.0f} s: {_why_not(suite, missing)}",
                    f"see {suite.logs}",
                )
        started.check_alive()
        return watch.result()
    finally:
        watch.stop.set()


def _why_not(suite: Suite, missing: list[str]) -> str:
    """Name the services, and of one that ended in this start what it said."""
    children = suite.state().get("processes", {})
    told = []
    for name in missing:
        began_anew = children.get(name, {}).get("restarts", 0) > 0
        reason = last_refusal(suite.logs / f"{name}.log")[1] if began_anew else ""
        told.append(f"{name} ({reason})" if reason else name)
    return ", ".join(told)


def _check_children(suite: Suite) -> None:
    for name, child in suite.state().get("processes", {}).items():
        if child["restarts"] >= _GIVE_UP_AFTER:
            reason = last_refusal(suite.logs / f"{name}.log")[1]
            raise unavailable(
                f"{name} does not start: {reason or 'exit status ' + str(child['last_exit'])}",
                f"see {suite.logs}/{name}.log and {name}.stderr",
            )


def _raise_on_term() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
        # Set too: a shell's background job starts with it ignored.
        signal.signal(signal.SIGINT, interrupt)


def _patiently(process: subprocess.Popen[bytes]) -> None:
    """Wait for a draining supervisor; a second Ctrl-C does not abandon it half-way."""
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except KeyboardInterrupt:
            line("still draining …", err=True)
        except subprocess.TimeoutExpired:
            raise CliError("the suite did not stop in time", code=Exit.UNAVAILABLE) from None
