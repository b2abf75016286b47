"""Every RPC of every service × every wrong identity: refused, and recorded where there is one.

The services are asked by reflection what they serve, so a new RPC is in the table by itself. The
test holds the suite's own authority: it can show whatever certificate an attacker could have.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import sealward.api
from sealward.api.audit.v1 import audit_pb2
from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
from sealward.api.keys.v1 import trust_pb2
from sealward.api.keys.v1.trust_pb2_grpc import TrustServiceStub
from sealward.cli.certificates import ensure_admin
from sealward.cli.connect import open_channel
from sealward.cli.rpc import error_info
from sealward.cli.suite import SERVICES
from sealward.evidence.event import read_span
from sealward.kit.access import RPCS
from sealward.kit.tls import Material
from services.gateway.control import UNRECORDED
from tests.conftest import CertificateAuthority
from tests.support.insider import Insider
from tests.support.suites import RunningSuite, running, until

TD = "sealward.local"
IDENTITIES = (
    "user/mallory", "workload/mallory", "admin/local", "service/gateway", "service/inference",
    "service/audit", "service/keys",
)  # fmt: skip
# Served by the chassis, not by us, and left without a record (docs/adr/0010).
QUIET = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


@dataclass(frozen=True)
class Refused:
    """A call that was refused: by whom, what, and to whom it has to be put down."""

    service: str
    method: str
    identity: str
    reason: str

    @property
    def recorded(self) -> bool:
        return self.method not in UNRECORDED and not self.method.startswith(
            tuple(f"/{name}/" for name in QUIET)
        )


@dataclass
class Table:
    """A suite, what its services serve, and certificates of every kind."""

    suite: RunningSuite
    insider: Insider
    methods: dict[str, list[str]] = field(default_factory=dict)

    def channel(self, service: str, material: Material) -> grpc.Channel:
        return open_channel(material, self.suite.suite.address(service), f"{service}.{TD}")

    def cells(self) -> Iterator[tuple[str, str]]:
        for service, methods in self.methods.items():
            for method in methods:
                yield service, method


def answer(channel: grpc.Channel, method: str) -> tuple[grpc.StatusCode, str]:
    """How a call with an empty message ends. On the wire a unary call is a stream of one."""
    call = channel.stream_stream(method)(iter([b""]), timeout=30)
    try:
        for _ in call:
            call.cancel()
            return grpc.StatusCode.OK, ""
    except grpc.RpcError as error:
        return error.code(), error_info(error)[0]
    return call.code(), ""


def served(channel: grpc.Channel) -> Iterator[str]:
    """Ask a service by reflection for its methods."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    response = next(stub.ServerReflectionInfo(iter([request]), timeout=20))
    for listed in response.list_services_response.service:
        found = descriptor_pool.Default().FindServiceByName(listed.name)
        yield from (f"/{listed.name}/{method.name}" for method in found.methods)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    for module in pkgutil.walk_packages(sealward.api.__path__, "sealward.api."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)
    importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    importlib.import_module("grpc_health.v1.health_pb2")
    development = {f"SEALWARD_{name.upper()}_DEVELOPMENT": "true" for name in SERVICES}
    with running(tmp_path_factory.mktemp("identities") / "data", development) as suite:
        suite.down()
        insider = Insider(suite)
        suite.up()
        made = Table(suite, insider)
        for service in SERVICES:
            with made.channel(service, ensure_admin(suite.suite)) as channel:
                made.methods[service] = sorted(served(channel))
        yield made


def test_the_table_is_whole(table: Table) -> None:
    """What is served is in the access table; what is in it and not served is unknown to all."""
    assert {method for _, method in table.cells()} <= set(RPCS)
    assert all(len(methods) > 4 for methods in table.methods.values())
    admin = ensure_admin(table.suite.suite)
    for service, methods in table.methods.items():
        with table.channel(service, admin) as channel:
            for method in set(RPCS) - set(methods):
                assert answer(channel, method)[1] == "METHOD_UNKNOWN", (service, method)


def test_whoever_may_not_call_is_refused_and_recorded(table: Table) -> None:
    """Every identity that the access table does not name for a method."""
    expected: dict[Refused, grpc.Channel] = {}
    with ExitStack() as held:
        for identity in IDENTITIES:
            material = table.insider.as_(identity)
            role = identity.split("/")[0] if identity.endswith("mallory") else identity
            for service, methods in table.methods.items():
                channel = held.enter_context(table.channel(service, material))
                for method in methods:
                    if role not in RPCS[method]:
                        row = refuse(channel, service, method, identity, "IDENTITY_FORBIDDEN")
                        expected[row] = channel
        # Each of the four refused many.
        assert {row.service for row in expected} == set(SERVICES)
        assert len(expected) > 200
        assert_recorded(table, expected)


def test_an_expired_certificate_on_an_open_connection(table: Table) -> None:
    material = {
        role: table.insider.as_(role, seconds=8)
        for role in ("user/eve", "workload/eve", *IDENTITIES[2:])
    }
    opened = {
        (service, role): table.channel(service, one)
        for service in SERVICES
        for role, one in material.items()
    }
    try:
        for channel in opened.values():
            assert answer(channel, "/grpc.health.v1.Health/Check")[0] is grpc.StatusCode.OK
        while time.time() <= max(one.not_after for one in material.values()):
            threading.Event().wait(0.05)
        expected = {
            refuse(channel, service, method, role, "IDENTITY_INVALID"): channel
            for service, method in table.cells()
            for role in [who_may(method, material)]
            for channel in [opened[service, role]]
        }
        assert_recorded(table, expected)
    finally:
        for channel in opened.values():
            channel.close()
    # A new connection does not come about.
    for service in SERVICES:
        with table.channel(service, material["admin/local"]) as channel:
            assert answer(channel, "/grpc.health.v1.Health/Check") == (
                grpc.StatusCode.UNAVAILABLE, "",
            )  # fmt: skip


def test_a_revoked_certificate(table: Table) -> None:
    material = {
        role: table.insider.as_(role) for role in ("user/eve", "workload/eve", *IDENTITIES[2:])
    }
    with table.channel("keys", ensure_admin(table.suite.suite)) as channel:
        for one in material.values():
            TrustServiceStub(channel).Revoke(
                trust_pb2.RevokeRequest(
                    serial=f"{one.serial:x}",
                    reason=trust_pb2.REVOCATION_REASON_KEY_COMPROMISE,
                ),
                timeout=20,
            )
    opened = {
        (service, role): table.channel(service, one)
        for service in SERVICES
        for role, one in material.items()
    }
    try:
        health = "/grpc.health.v1.Health/Check"
        for service in SERVICES:
            until(
                lambda service=service: (  # type: ignore[misc]
                    answer(opened[service, "admin/local"], health)[1] == "CERTIFICATE_REVOKED"
                ),
                f"{service} knows",
            )
        expected = {
            refuse(channel, service, method, role, "CERTIFICATE_REVOKED"): channel
            for service, method in table.cells()
            for role in [who_may(method, material)]
            for channel in [opened[service, role]]
        }
        assert_recorded(table, expected)
    finally:
        for channel in opened.values():
            channel.close()


def test_another_trust_domain_is_nobody(table: Table) -> None:
    for role in ("admin/local", "service/gateway", "user/mallory"):
        material = table.insider.as_(role, domain="elsewhere.local")
        for service, methods in table.methods.items():
            with table.channel(service, material) as channel:
                for method in methods:
                    wanted = (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_INVALID")
                    assert answer(channel, method) == wanted, (service, method)


def test_no_connection_without_a_certificate_of_our_authority(
    table: Table, authority: CertificateAuthority
) -> None:
    """A foreign authority, no certificate at all, plaintext: nothing is ever called."""
    bundle = ensure_admin(table.suite.suite).bundle_pem
    foreign = authority.issue(f"spiffe://{TD}/service/gateway", bundle=bundle)
    for service, methods in table.methods.items():
        address = table.suite.suite.address(service)
        named = [("grpc.ssl_target_name_override", f"{service}.{TD}")]
        nobody = grpc.secure_channel(address, grpc.ssl_channel_credentials(bundle), named)
        for channel in (table.channel(service, foreign), nobody, grpc.insecure_channel(address)):
            with channel:
                for method in methods:
                    assert answer(channel, method) == (grpc.StatusCode.UNAVAILABLE, ""), method


# --- helpers ---------------------------------------------------------------------------------


def who_may(method: str, roles: Iterable[str]) -> str:
    """One of the roles that may call a method: so that nothing but the certificate is wrong."""
    return next(
        role for role in roles if (role.split("/")[0] if "eve" in role else role) in RPCS[method]
    )


def refuse(channel: grpc.Channel, service: str, method: str, identity: str, reason: str) -> Refused:
    """Make a call that has to be refused with this reason."""
    code = grpc.StatusCode.UNAUTHENTICATED
    if reason == "IDENTITY_FORBIDDEN":
        code = grpc.StatusCode.PERMISSION_DENIED
    assert answer(channel, method) == (code, reason), (service, method, identity)
    return Refused(service, method, identity, reason)


def assert_recorded(table: Table, expected: Mapping[Refused, grpc.Channel]) -> None:
    """Each refusal is in the log, with who and what.

    Above ten a second the refusals of one identity are only counted: what is not there yet is tried
    again.
    """
    missing = {row: channel for row, channel in expected.items() if row.recorded}
    reason = next(iter(missing)).reason
    seen: set[bytes] = set()
    with table.channel("audit", ensure_admin(table.suite.suite)) as own:
        stub = AuditServiceStub(own)

        def look() -> None:
            query = audit_pb2.QueryEventsRequest(reason=reason, limit=1000)
            for row in stub.QueryEvents(query, timeout=20).events:
                if row.event_id in seen:
                    continue
                seen.add(row.event_id)
                span = stub.GetEvent(
                    audit_pb2.GetEventRequest(event_id=row.event_id), timeout=20
                ).span
                about = read_span(span).attributes
                who = f"{about['sealward.actor.kind']}/{about['sealward.actor.id']}"
                for found in [
                    r for r in missing if (r.method, r.identity) == (about["rpc.method"], who)
                ]:
                    del missing[found]

        def all_there() -> bool:
            look()
            for row, channel in missing.items():
                refuse(channel, row.service, row.method, row.identity, row.reason)
            return not missing

        until(all_there, f"refusals with {reason} are in the log")
