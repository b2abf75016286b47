"""A running deployment, as the rows of the check ask it (sealward.check.deployment)."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.audit.v1 import review_pb2
from sealward.api.gateway.v1 import factor_pb2
from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.check.deployment import Listener, Person, Reply, Settings
from sealward.check.questions import totp, until
from sealward.check.row import NotTestable
from sealward.cli.check import dialling, kernel
from sealward.cli.connect import open_channel, trust_domain
from sealward.cli.errors import unavailable
from sealward.cli.rpc import error_info, trailers
from sealward.cli.store import store_environ
from sealward.cli.suite import Suite
from sealward.kit.tls import Material, key_to_pem, load_material, make_csr, new_key

_USERS = "/sealward.api.gateway.v1.UserService/"
_FACTORS = "/sealward.api.gateway.v1.FactorService/"
_LOGIN = "/sealward.api.gateway.v1.SessionService/Login"
_REVIEW = "/sealward.api.audit.v1.ReviewService/"
_MOST_ANSWERS = 1000
_MOMENT = 5.0
_VERB_SECONDS = 300


class Live:
    """Use it as a context manager: leaving it takes away what the run has made.

    `suite` is None for a deployment that is reached by addresses alone.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Mapping[str, str]],
        material: Material,
        settings: Settings,
        suite: Suite | None = None,
    ) -> None:
        self.settings = settings
        self.root: Path | None = suite.root if suite else None
        self.domain = trust_domain(material)
        self._suite = suite
        self._endpoints = endpoints
        self._material = material
        self._people: dict[tuple[str, ...], Person] = {}
        self._made: dict[str, Material] = {}
        self._asked_for: set[str] = set()
        self._factors: bool | None = None
        self._idle: dict[str, tuple[int, float]] = {}
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self.ended = threading.Event()
        """Set when the run has to end: then nothing more is asked."""
        self._run = settings.canary[-8:].lower()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.clean_up()
        finally:
            for channel in self._channels.values():
                channel.close()

    # --- people ------------------------------------------------------------------------------

    def person(self, *roles: str, fresh: bool = False, bare: bool = False) -> Person:
        """See Deployment."""
        if not fresh and roles in self._people:
            return self._awake(self._people[roles])
        person = self._new(roles, one_time=False)
        logged_in = self.login(person)
        if not logged_in.ok:
            raise NotTestable(f"a person for the check cannot log in: {logged_in.said}")
        if not bare and self._asked_for_a_factor(person):
            self._enrol(person)
        if not fresh:
            self._people[roles] = person
        return person

    def _asked_for_a_factor(self, person: Person) -> bool:
        """Whether the policy lets nobody do anything without a second factor."""
        if self._factors is None:
            method = "/inference.GRPCInferenceService/ServerMetadata"
            self._factors = self.call("gateway", method, who=person).reason == "STEP_UP_REQUIRED"
        return self._factors

    def _enrol(self, person: Person) -> None:
        reply = self.call("gateway", f"{_FACTORS}BeginTotp", who=person)
        if not reply.ok:
            raise NotTestable(f"a second factor cannot be enrolled: {reply.said}")
        secret = factor_pb2.BeginTotpResponse.FromString(reply.body).secret
        code = totp(secret, int(time.time()) // 30)
        confirm = factor_pb2.ConfirmTotpRequest(code=code).SerializeToString()
        reply = self.call("gateway", f"{_FACTORS}ConfirmTotp", confirm, who=person)
        if not reply.ok:
            raise NotTestable(f"a second factor cannot be confirmed: {reply.said}")
        answer = factor_pb2.ConfirmTotpResponse.FromString(reply.body)
        person.recovery = list(answer.recovery_codes)

    def _awake(self, person: Person) -> Person:
        """Log somebody in again who did nothing for so long that the session may have ended."""
        idle, last = self._idle.get(person.name, (0, 0.0))
        if time.monotonic() - last > idle / 2 and not self.login(person).ok:
            raise NotTestable("a person for the check cannot log in again")
        return person

    def one_time(self, role: str) -> Person:
        """See Deployment."""
        return self._new((role,), one_time=True)

    def _new(self, roles: tuple[str, ...], *, one_time: bool) -> Person:
        name = f"zzcheck-{self._run}-{len(self._made)}"
        password = secrets.token_urlsafe(18)
        request = gw.CreateUserRequest(user=name, roles=roles, password=password, one_time=one_time)
        # Before the call: whatever becomes of it is taken away.
        self._made[name] = self._material
        self._asked_for.add(name)
        reply = self._must(f"{_USERS}CreateUser", request, "a person for the check")
        self._asked_for.discard(name)
        user_id = gw.CreateUserResponse.FromString(reply.body).user_id
        self._certify(name)
        return Person(name, user_id, roles, password)

    def _certify(self, name: str) -> None:
        key = new_key()
        csr = make_csr(key, name).public_bytes(Encoding.DER)
        request = gw.IssueUserCertificateRequest(csr=csr, user=name)
        reply = self._must(f"{_USERS}IssueUserCertificate", request, "a certificate for the check")
        answer = gw.IssueUserCertificateResponse.FromString(reply.body)
        self._made[name] = load_material(
            key_to_pem(key), answer.certificate_pem.encode(), answer.bundle_pem.encode()
        )

    def _must(self, method: str, message: Any, what: str) -> Reply:
        reply = self.call("gateway", method, message.SerializeToString())
        if not reply.ok:
            raise NotTestable(f"{what} cannot be had: {reply.said}")
        return reply

    def login(self, person: Person, *, code: str = "", password: str = "") -> Reply:
        """See Deployment."""
        if person.recovery and not (code or password):
            code = person.recovery.pop()
        request = gw.LoginRequest(user=person.name, password=password or person.password, code=code)
        reply = self.call("gateway", _LOGIN, request.SerializeToString(), who=person, token="")
        if reply.ok:
            answer = gw.LoginResponse.FromString(reply.body)
            person.token, person.session_id = answer.token, answer.session_id
            self._idle[person.name] = (answer.idle_seconds, time.monotonic())
        return reply

    # --- calls -------------------------------------------------------------------------------

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
        """See Deployment."""
        if self.ended.is_set():
            raise KeyboardInterrupt
        bearer = token if token is not None else who.token if who else ""
        sent = (*metadata, ("authorization", f"Bearer {bearer}")) if bearer else tuple(metadata)
        channel = self._channel(service, who.name if who else "")
        # On the wire a unary call is a stream of one.
        ask: Any = channel.stream_stream(method)
        call = ask(iter([body]), metadata=sent, timeout=seconds)
        bodies: list[bytes] = []
        try:
            for answer in call:
                bodies.append(answer)
                if len(bodies) >= _MOST_ANSWERS:
                    call.cancel()
                    return Reply("OK", bodies=tuple(bodies))
        except grpc.RpcError as error:
            code, reason = str(error.code().name), error_info(error)[0]
            return _reply(error, code, reason, (), str(error.details() or ""))
        return _reply(call, "OK", "", tuple(bodies))

    def _channel(self, service: str, name: str) -> grpc.Channel:
        key = (service, name)
        if key not in self._channels:
            material = self._made[name] if name else self._material
            address = self._endpoints[service]["address"]
            self._channels[key] = open_channel(material, address, f"{service}.{self.domain}")
        return self._channels[key]

    def dial(self, service: str, kind: str, how: str) -> bool:
        """See Deployment."""
        try:
            return dialling.dial(self._endpoints[service][kind], kind, how, self._material)
        except OSError:
            return False

    def dial_store(self, how: str) -> bool | None:
        """See Deployment."""
        if self._suite is None or not self._suite.store_file.exists():
            return None
        address = urlsplit(store_environ(self._suite)["REDIS_URL"])
        try:
            return dialling.dial(
                f"{address.hostname}:{address.port or 6379}", "store", how, self._material
            )
        except OSError:
            raise NotTestable("the session store cannot be reached") from None

    def metrics(self, service: str) -> bytes:
        """See Deployment."""
        try:
            return dialling.get_metrics(self._endpoints[service]["metrics"], self._material)
        except OSError:
            raise NotTestable(f"the metrics of {service} cannot be read") from None

    def endpoints(self) -> Mapping[str, Mapping[str, str]]:
        """See Deployment."""
        return self._endpoints

    # --- processes and files -----------------------------------------------------------------

    def processes(self) -> Mapping[str, int]:
        """See Deployment."""
        if self._suite is None:
            raise NotTestable("the processes are not on this machine")
        children = self._suite.state().get("processes", {})
        found = {name: int(child["pid"]) for name, child in children.items() if child.get("pid")}
        supervisor = self._suite.supervisor_pid()
        if not found or supervisor is None:
            raise NotTestable("the supervisor does not say which processes it runs")
        return {**found, "supervisor": supervisor}

    def proc(self, pid: int, name: str) -> str:
        """See Deployment."""
        return kernel.proc(pid, name)

    def listeners(self) -> Sequence[Listener]:
        """See Deployment."""
        return kernel.listeners(self.processes())

    def sealward(self, *arguments: str) -> tuple[int, Mapping[str, object]]:
        """See Deployment."""
        if self._suite is None:
            raise NotTestable("this needs the suite's folder")
        done = subprocess.run(
            [
                sys.executable, "-m", "sealward.cli.main", *arguments,
                "--dir", str(self._suite.root), "--json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=_VERB_SECONDS,
        )  # fmt: skip
        try:
            found = json.loads(done.stdout)
        except ValueError:
            found = {}
        return done.returncode, found if isinstance(found, dict) else {}

    @contextmanager
    def held(self, service: str) -> Iterator[None]:
        """See Deployment."""
        if not self.settings.disrupt:
            raise NotTestable("it would hold a service still: add --disrupt, outside of busy hours")
        pid = self.processes()[service]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # --- afterwards --------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Disable the people of this run and decide about their emergency access."""
        self.ended.clear()
        self._sign_off()
        for name in self._made:
            # Somebody whom an interrupt left half made comes to be a moment later.
            until(partial(self._disable, name), _MOMENT if name in self._asked_for else 0.0)

    def _disable(self, name: str) -> bool:
        request = gw.DisableUserRequest(user=name)
        return self.call("gateway", f"{_USERS}DisableUser", request.SerializeToString()).ok

    def _sign_off(self) -> None:
        request = review_pb2.ListBreakGlassRequest(limit=10_000)
        with suppress(grpc.RpcError):
            reply = self.call("audit", f"{_REVIEW}ListBreakGlass", request.SerializeToString())
            if not reply.ok:
                return
            for item in review_pb2.ListBreakGlassResponse.FromString(reply.body).items:
                if item.event.actor in self._made and item.event.actor_kind == "user":
                    decision = review_pb2.SignOffRequest(
                        event_id=item.event.event_id, verdict="justified"
                    )
                    self.call("audit", f"{_REVIEW}SignOff", decision.SerializeToString())


def _reply(
    call: Any, code: str, reason: str, bodies: tuple[bytes, ...], details: str = ""
) -> Reply:
    found = trailers(call)
    index = found.get("sealward-log-index")
    receipt = found.get("sealward-receipt-bin")
    return Reply(
        code,
        reason,
        str(found.get("sealward-event-id", "")),
        int(index) if isinstance(index, str) and index.isdigit() else None,
        receipt if isinstance(receipt, bytes) else b"",
        bodies,
        details,
    )


def connect(suite: Suite, settings: Settings) -> Live:
    """Return the deployment of a suite's folder; raise CliError when it does not run."""
    from sealward.cli.certificates import ensure_admin

    suite.require_running()
    return Live(suite.endpoints(), ensure_admin(suite), settings, suite)


def connect_by_address(endpoints: Path, credentials: Path, settings: Settings) -> Live:
    """Return a deployment that is reached by addresses; raise CliError.

    `endpoints` is a file such as endpoints.json, `credentials` a folder with the administrator's
    key.pem, cert.pem and ca.pem.
    """
    from sealward.cli.certificates import read_material
    from sealward.cli.errors import unreadable, usage

    try:
        found = json.loads(endpoints.read_bytes())
    except OSError as error:
        raise unreadable(endpoints, error, "--endpoints FILE") from None
    except ValueError:
        raise usage(f"{endpoints} is not JSON", "--endpoints FILE") from None
    try:
        for service in ("gateway", "inference", "audit", "keys"):
            found[service]["address"], found[service]["metrics"]
    except (KeyError, TypeError):
        raise usage(f"{endpoints} does not name every service", "--endpoints FILE") from None
    material = read_material(credentials)
    if material is None:
        raise usage(
            f"{credentials} holds no key.pem, cert.pem and ca.pem that can be used",
            "--credentials FOLDER",
        )
    return Live(found, material, settings)


def require_answers(live: Live) -> None:
    """Raise CliError when gateway or audit do not answer at all."""
    for service in ("gateway", "audit"):
        reply = live.call(service, "/grpc.health.v1.Health/Check", seconds=5.0)
        if not reply.ok:
            raise unavailable(f"{service} does not answer", "sealward status")
