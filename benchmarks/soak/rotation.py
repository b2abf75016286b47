"""Everything is rotated, again and again, while callers go on: no failed call, nothing unreadable.

A round: key-encryption keys (rotate, rewrap, retire), the log's signing key, every certificate, the
certificate authority. Every few rounds a log ends and is archived, so that ended and archived logs
are rewrapped too. Lives and leases are short, so that what would fail in hours fails in seconds. At
the end the suite is started anew, and everything that is sealed has to open: every entry of every
log, every model package, the session that was there from the beginning.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak.load import Caller, SdkCall, StockCall
from sealward.cli.suite import Suite
from sealward.tlog.tiles import TILE_WIDTH, decode_bundle, entries_path

SERVICES = ("KEYS", "GATEWAY", "AUDIT", "INFERENCE")
USER = "soak"
SETTINGS: Mapping[str, str] = {
    **{f"SEALWARD_{name}_CERTIFICATE_SECONDS": "30" for name in SERVICES},
    **{f"SEALWARD_{name}_TRUST_SECONDS": "0.5" for name in SERVICES},
    # The SDK looks at its profile every two seconds.
    "SEALWARD_KEYS_CA_SETTLE_SECONDS": "5",
    "SEALWARD_KEYS_USER_CERTIFICATE_SECONDS": "120",
    # Renewed all the time: with a wrapped form that is gone it would fail at once.
    "SEALWARD_KEYS_LEASE_SOFT_SECONDS": "1",
    "SEALWARD_KEYS_LEASE_HARD_SECONDS": "20",
}
_ARCHIVED_EVERY = 5
_SEALED = 1
ROW = [
    18.0, 10.4, 122.8, 1001.0, 0.12, 0.28, 0.3, 0.15, 0.24, 0.08, 1.1, 0.9, 8.6, 153.4, 0.006, 0.05,
    0.05, 0.016, 0.03, 0.006, 25.4, 17.3, 184.6, 2019.0, 0.16, 0.67, 0.71, 0.27, 0.46, 0.12,
]  # fmt: skip


@dataclass
class Report:
    """What came of it. `seconds`: of each step, by its name, one for each round."""

    rounds: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    entries: int = 0
    rewrapped: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        trouble = [*self.unreadable, *self.trouble, *filter(None, self.failed.values())]
        return not trouble and bool(self.calls) and all(self.calls.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "rounds": self.rounds,
            "calls": self.calls,
            "failed_calls": sum(map(len, self.failed.values())),
            "failures": {name: rows[:20] for name, rows in self.failed.items() if rows},
            "unreadable": self.unreadable[:20],
            "commands_failed": self.trouble,
            "entries_read": self.entries,
            "keys_rewrapped": self.rewrapped,
            "seconds": {
                name: {"median": round(sorted(s)[len(s) // 2], 2), "longest": round(max(s), 2)}
                for name, s in self.seconds.items()
            },
        }


class Soak:
    """A suite that is rotated. `say` is told what is done; `up` goes with the first start."""

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None] = lambda _text: None,
        up: Sequence[str] = (),
    ) -> None:
        self.suite = Suite.at(folder)
        self.report = Report()
        self._say = say
        self._up = up
        self._password = secrets.token_urlsafe(18)
        self._environ = {**SETTINGS, **os.environ}
        self._callers: list[Caller] = []

    def run(self, rounds: int) -> Report:
        """Start, rotate so many times, start anew, read everything; end the suite."""
        try:
            self.begin()
            with self._calling():
                for number in range(1, rounds + 1):
                    self._round(number)
                    self.report.rounds = number
            self.read_everything_anew()
        except RuntimeError as error:
            self.report.trouble.append(str(error))
            self._count_deaths()
        finally:
            self.sealward("down")
        return self.report

    def begin(self) -> None:
        """Start the suite and log somebody in."""
        self.sealward("up", "--detach", *self._up)
        self._add_user()

    def read_everything_anew(self) -> None:
        """Start the suite anew, and open everything that is sealed."""
        self._count_deaths()
        self._say("starting anew")
        self.sealward("down")
        self.sealward("up", "--detach")
        self._read_everything()

    @property
    def profile(self) -> Path:
        """The client folder of the caller."""
        return self.suite.clients / USER

    def sealward(self, *arguments: str) -> Any:
        """Run a command; return what it prints. Raise RuntimeError when it fails."""
        done = subprocess.run(
            [
                sys.executable, "-m", "sealward.cli.main", *arguments,
                "--dir", str(self.suite.root), "--json",
            ],
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(
                f"sealward {' '.join(arguments)}: {done.returncode} {done.stdout} {done.stderr}"
            )
        return json.loads(done.stdout)

    def _count_deaths(self) -> None:
        """A process that ended by itself is a finding even where nobody noticed."""
        for name, child in self.suite.state().get("processes", {}).items():
            if child["restarts"]:
                self.report.trouble.append(
                    f"{name} ended {child['restarts']} times, last with {child['last_exit']}"
                )

    # --- a round -----------------------------------------------------------------------------

    def _round(self, number: int) -> None:
        self._say(f"round {number}")
        with self._timed("keys rotate"):
            self.sealward("keys", "rotate")
        self._more()
        with self._timed("keys rewrap --retire"):
            moved = self.sealward("keys", "rewrap", "--retire")
        self._check_moved(moved, number)
        with self._timed("audit logs rotate-key"):
            self.sealward("audit", "logs", "rotate-key", "--overlap", "3s")
        with self._timed("certs rotate --all"):
            self.sealward("certs", "rotate", "--all")
        self._more()
        with self._timed("certs rotate --ca --now --wait"):
            replaced = self.sealward("certs", "rotate", "--ca", "--now", "--wait")
        if replaced["under_way"] or len(replaced["authorities"]) != 1:
            self.report.unreadable.append(f"round {number}: the authority was not replaced")
        self._more()
        if number % _ARCHIVED_EVERY == 1:
            with self._timed("audit logs freeze and archive"):
                ended = self.sealward("audit", "logs", "freeze")["ended"]
                self.sealward("audit", "logs", "archive", ended["origin"])
            self._more()

    def _check_moved(self, result: dict[str, Any], number: int) -> None:
        rows = [row for rows in result["holders"].values() for row in rows]
        self.report.rewrapped += sum(row["moved"] for row in rows)
        left = [f"{row['tenant']}/{row['purpose']}" for row in rows if not row["confirmed"]]
        if left or result["needed"] or not result["retired"]:
            self.report.unreadable.append(f"round {number}: not moved on: {left or result}")

    # --- what has to open --------------------------------------------------------------------

    def _read_everything(self) -> None:
        for model in self.sealward("model", "list")["models"]:
            if model["state"] != "ready":
                self.report.unreadable.append(f"model {model['name']}: {model['reason']}")
        sealed = sum(self._sealed_entries(log) for log in self.sealward("audit", "logs")["logs"])
        output = self.suite.root / "run" / "soak.csv"
        try:
            read = self.sealward("audit", "export", "--format", "csv", "-o", str(output))
            self.report.entries = read["events"]
        except RuntimeError as error:
            self.report.unreadable.append(str(error))
        finally:
            output.unlink(missing_ok=True)
        if self.report.entries < sealed:
            self.report.unreadable.append(f"{sealed} entries, {self.report.entries} were read")
        # The session of the beginning, with the token of the beginning.
        with SdkCall(self.profile, ROW) as ask:
            try:
                ask()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                self.report.unreadable.append(f"the session: {error!r}")

    def _sealed_entries(self, log: dict[str, Any]) -> int:
        """How many sealed entries a published log has, counted by its files alone."""
        folder = self.suite.root / "audit" / log["folder"] / "log"
        size = int((folder / "checkpoint").read_bytes().split(b"\n")[1])
        count = 0
        for tile in range(-(-size // TILE_WIDTH)):
            width = min(TILE_WIDTH, size - tile * TILE_WIDTH)
            data = (folder / entries_path(tile, width)).read_bytes()
            # The others are in clear: a change of key, or of log.
            count += sum(leaf[0] == _SEALED for leaf in decode_bundle(data, width))
        return count

    # --- callers -----------------------------------------------------------------------------

    def _add_user(self) -> None:
        file = self.suite.secrets / "soak-password"
        file.write_text(self._password)
        file.chmod(0o600)
        self.sealward("user", "add", USER, "--role", "clinician", "--password-file", str(file))
        self.sealward("login", "--user", USER, "--password-file", str(file))
        file.unlink()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        profile = self.profile
        self._callers = [
            Caller("sdk-1", lambda: SdkCall(profile, ROW)),
            Caller("sdk-2", lambda: SdkCall(profile, ROW)),
            Caller("stock", lambda: StockCall(profile, ROW)),
        ]
        for caller in self._callers:
            caller.start()
        try:
            self._more()
            yield
        finally:
            for caller in self._callers:
                caller.stop()
                self.report.calls[caller.name] = caller.ok
                self.report.failed[caller.name] = caller.failed

    def _more(self) -> None:
        """Every caller has further answers: nobody stands still without failing."""
        for caller in self._callers:
            caller.more(5)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.report.seconds.setdefault(name, []).append(time.perf_counter() - began)
