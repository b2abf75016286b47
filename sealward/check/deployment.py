"""What a row may ask of a deployment. `sealward.cli.check.live` asks a running one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

SERVICES = ("gateway", "inference", "audit", "keys")
"""The services that every deployment has."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended: gRPC code, our reason, the trailers that name its record, the messages.

    `details` is the text of the status: it is searched, never printed.
    """

    code: str
    reason: str = ""
    event_id: str = ""
    log_index: int | None = None
    receipt: bytes = b""
    bodies: tuple[bytes, ...] = ()
    details: str = field(repr=False, default="")

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.code == "OK"

    @property
    def body(self) -> bytes:
        """The message of a unary answer."""
        return self.bodies[0] if self.bodies else b""

    @property
    def said(self) -> str:
        """Return reason or code, for the report."""
        return self.reason or self.code


@dataclass(slots=True)
class Person:
    """A principal that this run made. Its secrets stay out of every printed form."""

    name: str
    user_id: str
    roles: tuple[str, ...]
    password: str = field(repr=False)
    token: str = field(repr=False, default="")
    session_id: str = ""
    recovery: list[str] = field(repr=False, default_factory=list)
    """Codes for logins, of somebody who has a second factor because the policy asks for one."""

    @property
    def proven(self) -> bool:
        """Whether a second factor was proven."""
        return bool(self.recovery)


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket of the deployment's processes. `owner` is the process's name."""

    owner: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Report:
    """An earlier report that holds: what `--diff` compares with."""

    ended: str
    states: Mapping[str, str]
    event_id: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked of this run.

    `canary` is the text that is looked for afterwards, `patience` how many seconds a row may wait.
    """

    profile: str
    canary: str
    read_only: bool = False
    disrupt: bool = False
    review_hours: int = 72
    patience: int = 30
    last: Report | None = None


class Deployment(Protocol):
    """A running deployment, asked as its local administrator and as people that this run makes."""

    settings: Settings
    root: Path | None
    """The suite's folder; None when it is not on this machine."""
    domain: str
    """The trust domain."""

    def person(self, *roles: str, fresh: bool = False, bare: bool = False) -> Person:
        """Return a logged-in person with these roles; a `fresh` one is nobody else's.

        Where the policy asks for a second factor, the person has one, unless `bare`.
        """

    def one_time(self, role: str) -> Person:
        """Return a person who is not logged in and whose password is for one use."""

    def login(self, person: Person, *, code: str = "", password: str = "") -> Reply:
        """Log a person in and keep the token; another `password` is only tried."""

    def call(
        self,
        service: str,
        method: str,
        body: bytes = b"",
        *,
        who: Person | None = None,
        token: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        seconds: float = 20.0,
    ) -> Reply:
        """Make a call as the administrator, or as a person within their session.

        `token` takes the place of the person's own; an empty one is no session at all.
        """

    def dial(self, service: str, kind: str, how: str) -> bool:
        """Try to get an answer from a listener in a wrong way; return whether it came.

        `kind` is `address` or `metrics`; `how` is one of WAYS, or `right`.
        """

    def dial_store(self, how: str) -> bool | None:
        """The same with a session store that is reached over the network; None for no such one."""

    def endpoints(self) -> Mapping[str, Mapping[str, str]]:
        """Return service → {"address": "host:port", "metrics": "host:port"}."""

    def processes(self) -> Mapping[str, int]:
        """Return name → process id; raise NotTestable where they are on another machine."""

    def proc(self, pid: int, name: str) -> str:
        """Return a file of /proc/PID; raise NotTestable where it cannot be read."""

    def listeners(self) -> Sequence[Listener]:
        """Return the listening TCP sockets of the processes; raise NotTestable."""

    def metrics(self, service: str) -> bytes:
        """Return what a service's metrics listener answers."""

    def sealward(self, *arguments: str) -> tuple[int, Mapping[str, object]]:
        """Run another verb of `sealward` with --json; return exit code and what it printed."""

    def held(self, service: str) -> AbstractContextManager[None]:
        """Hold a service still for the length of the block; raise NotTestable without --disrupt."""


WAYS = (
    "plaintext", "no certificate", "another authority", "TLS 1.2", "TLS 1.1", "TLS 1.0",
    "altered",
)  # fmt: skip
"""Ways in which nobody gets an answer."""
