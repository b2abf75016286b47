"""A whole suite, started by the real command, and what tests ask of it."""

from __future__ import annotations

import base64
import csv
import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import services
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.cli.audit.events import _query
from sealward.cli.connect import user_channel
from sealward.cli.errors import CliError
from sealward.cli.infer import Answer, Caller
from sealward.cli.login import start_session
from sealward.cli.suite import Suite
from sealward.cli.user import add_user
from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.leaf import parse_leaf
from sealward.tlog.logdir import LogReport, verify_directory
from sealward.tlog.note import parse_note, parse_vkeys
from sealward.tlog.tiles import TILE_WIDTH, decode_bundle, entries_path
from tests.support.vault import VaultServer, shared
from tests.support.waiting import SECONDS, until

__all__ = ["SECONDS", "until"]


def heldout(model: str) -> list[list[float]]:
    """Measurements of a shipped model's held-out patients."""
    path = Path(services.__path__[0], "inference", "shipped", model, "heldout.csv")
    with path.open(newline="") as file:
        return [[float(cell) for cell in row[1:-1]] for row in list(csv.reader(file))[1:]]


def request(model: str = "breast-cancer", row: int = 0, rows: int = 1) -> ModelInferRequest:
    """A right request about held-out patients."""
    values = heldout(model)[row : row + rows]
    made = ModelInferRequest(model_name=model)
    tensor = made.inputs.add(
        name="measurements", datatype="FP32", shape=[len(values), len(values[0])]
    )
    for value in values:
        tensor.contents.fp32_contents.extend(value)
    return made


def rest_json(model: str = "breast-cancer", row: int = 0) -> str:
    """The same as `request`, as the protocol's JSON."""
    values = heldout(model)[row]
    tensor = {
        "name": "measurements", "datatype": "FP32", "shape": [1, len(values)], "data": values,
    }  # fmt: skip
    return json.dumps({"inputs": [tensor]})


PROVIDER = os.environ.get("SEALWARD_TEST_PROVIDER", "embedded")
"""Where the keys of every suite are: `vault` runs all of the tests on a real Vault server."""


class RunningSuite:
    """A suite in a folder of its own. `vault`: the server for its keys, else the shared one."""

    def __init__(
        self,
        root: Path,
        environ: Mapping[str, str] | None = None,
        *,
        provider: str = PROVIDER,
        vault: VaultServer | None = None,
    ) -> None:
        assert provider in ("embedded", "vault")
        self.suite = Suite.at(root)
        self.environ = {**os.environ, **(environ or {})}
        # The tests' own server is named on the command line, and its administrator to nobody.
        for name in ("VAULT_ADDR", "VAULT_TOKEN", "VAULT_BIN"):
            self.environ.pop(name, None)
        self.provider = provider
        self.vault = vault
        self._passwords: dict[str, str] = {}

    # --- commands ----------------------------------------------------------------------------

    def sealward(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json; check its exit code and return what it printed."""
        done = subprocess.run(
            [
                sys.executable, "-m", "sealward.cli.main", *arguments,
                "--dir", str(self.suite.root), "--json",
            ],
            capture_output=True,
            text=True,
            check=False,
            env=self.environ,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    def sealward_any(self, *arguments: str) -> int:
        """Run a command; return its exit code."""
        return subprocess.run(
            [sys.executable, "-m", "sealward.cli.main", *arguments, "--dir", str(self.suite.root)],
            capture_output=True,
            check=False,
            env=self.environ,
            timeout=120,
        ).returncode

    def up(self, *flags: str) -> Any:
        return self.sealward("up", "--detach", *self.provider_flags(), *flags)

    def provider_flags(self) -> list[str]:
        """What the first `up` is told about its provider; the folder remembers it."""
        if self.provider != "vault" or self.suite.vault_file.exists():
            return []
        self.vault = self.vault or shared()
        login = self.vault.set_up(self.suite.root.with_name(f"{self.suite.root.name}-credentials"))
        ca = ["--vault-ca", str(self.vault.tls[2])] if self.vault.tls else []
        return ["--vault", self.vault.address, "--vault-credentials", str(login.folder), *ca]

    def down(self) -> None:
        self.sealward("down")

    # --- people ------------------------------------------------------------------------------

    def user(self, name: str, role: str = "clinician") -> str:
        """Add a user once and log them in."""
        if name not in self._passwords:
            password = secrets.token_urlsafe(18)
            add_user(self.suite, name, [role], password)
            self._passwords[name] = password
            self.login(name)
        return name

    def login(self, name: str) -> str:
        return start_session(self.suite, name, self._passwords[name])[0]

    def login_with(self, name: str, password: str) -> str:
        return start_session(self.suite, name, password)[0]

    def password(self, name: str) -> str:
        return self._passwords[name]

    def token(self, name: str) -> str:
        return (self.suite.clients / name / "session").read_text()

    # --- calls -------------------------------------------------------------------------------

    def ask(self, name: str, message: ModelInferRequest | None = None, **options: Any) -> Answer:
        """One prediction, its receipt verified."""
        with Caller(self.suite, name) as caller:
            return caller.ask((message or request()).SerializeToString(), **options)

    def refusal(
        self, name: str, message: ModelInferRequest | None = None, **options: Any
    ) -> CliError:
        """The error of a prediction that has to be refused."""
        try:
            self.ask(name, message, **options)
        except CliError as error:
            return error
        raise AssertionError("it was answered")

    def raw(
        self, name: str, metadata: tuple[tuple[str, str], ...], message: bytes | None = None
    ) -> Any:
        """One prediction with metadata of one's own; return (response bytes, call)."""
        with user_channel(self.suite, name) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            body = request().SerializeToString() if message is None else message
            return infer.with_call(body, metadata=metadata, timeout=20)

    def events(self, **filters: Any) -> list[Any]:
        return _query(self.suite, **filters)

    def event(self, event_id: str) -> Any:
        return self.sealward("audit", "show", event_id)

    # --- processes ---------------------------------------------------------------------------

    def pid(self, name: str) -> int | None:
        child = self.suite.state().get("processes", {}).get(name, {})
        found: int | None = child.get("pid")
        return found

    def kill(self, name: str) -> int:
        """Kill it with signal 9; return the process id that was killed."""
        pid = self.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Hold a process still for the length of the block."""
        pid = self.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            # It may have been killed meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def restarted(self, name: str, old: int) -> None:
        until(lambda: self.pid(name) not in (None, old), f"{name} starts again")

    def answers_again(self, name: str) -> None:
        """Wait until predictions are answered, without anybody's help."""

        def answered() -> bool:
            try:
                self.ask(name, timeout=5)
            except CliError as error:
                if error.details.get("status") not in TRANSIENT:
                    raise
                return False
            return True

        until(answered, "answers again")

    # --- the log -----------------------------------------------------------------------------

    def published(self) -> int:
        try:
            return int((self.suite.log_dir / "checkpoint").read_bytes().split(b"\n")[1])
        except OSError:
            return 0

    def verify(self, *known: bytes) -> LogReport:
        """Verify the published log; it must continue each of the `known` checkpoints."""
        checkpoints = [Checkpoint.parse(parse_note(note).text) for note in known]
        vkeys = parse_vkeys(self.suite.vkey_file.read_text())
        return verify_directory(self.suite.log_dir, vkeys, known=checkpoints)

    def entries(self) -> list[str]:
        """The event id of each published entry."""
        size = self.published()
        found: list[str] = []
        for index in range(-(-size // TILE_WIDTH)):
            width = min(TILE_WIDTH, size - index * TILE_WIDTH)
            data = (self.suite.log_dir / entries_path(index, width)).read_bytes()
            found += [parse_leaf(item).event_id.hex() for item in decode_bundle(data, width)]
        return found

    def assert_each_once(self, answers: list[Answer]) -> None:
        """Each answered call is in the log, once, where its receipt says."""
        highest = max(answer.proof.log_index for answer in answers)
        until(lambda: self.published() > highest, "entries are published")
        entries = self.entries()
        counts = Counter(entries)
        for answer in answers:
            event = answer.proof.event_id.replace("-", "")
            assert counts[event] == 1
            assert entries[answer.proof.log_index] == event
        assert max(counts.values()) == 1


TRANSIENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


@contextmanager
def running(
    root: Path,
    environ: Mapping[str, str] | None = None,
    *,
    provider: str = PROVIDER,
    vault: VaultServer | None = None,
) -> Iterator[RunningSuite]:
    """Start a suite, and stop it whatever happens."""
    started = RunningSuite(root, environ, provider=provider, vault=vault)
    try:
        started.up()
        yield started
    finally:
        started.down()


def receipt_of(error: CliError) -> bytes:
    """The verified receipt of a refused call."""
    return base64.b64decode(error.details["receipt"])
