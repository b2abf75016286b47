"""The chassis over real TLS: who gets in, what errors look like, what the seam carries."""

from __future__ import annotations

import importlib
import os
import pkgutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from prometheus_client import CollectorRegistry

import sealward.api
from sealward.api.audit.v1.audit_pb2 import AppendRequest, AppendResponse
from sealward.api.common.v1 import errors_pb2
from sealward.api.common.v1.batch_pb2 import Call as CallMessage
from sealward.api.keys.v1 import keys_pb2, keys_pb2_grpc
from sealward.kit.access import RPCS
from sealward.kit.channel import Channels
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.grpcio_front import BatchFront, UnaryFront
from sealward.kit.grpcio_upstream import BatchUpstream
from sealward.kit.health import Health
from sealward.kit.identity import PeerReader, parse_identity
from sealward.kit.logging import get_logger
from sealward.kit.metrics import ServerMetrics
from sealward.kit.oldtls import refuse_old_tls
from sealward.kit.reasons import CODES, Code, Reason
from sealward.kit.revocation import Revocations
from sealward.kit.seam import Answer, OutCall
from sealward.kit.server import GrpcServer, connection_age, stream_age
from sealward.kit.settings import ServiceSettings, load, settings_config
from sealward.kit.status import DETAILS_KEY
from sealward.kit.tls import Credentials, Material
from tests.support.inference_suite import until

TD = "sealward.local"
INFER = "/inference.GRPCInferenceService/ModelInfer"
APPEND = "/sealward.api.audit.v1.AuditService/Append"


class KeysServicer(keys_pb2_grpc.KeysServiceServicer):
    def CreateBranchKey(self, request: Any, context: Any) -> keys_pb2.CreateBranchKeyResponse:
        return keys_pb2.CreateBranchKeyResponse()

    def IssueCertificate(self, request: Any, context: Any) -> keys_pb2.IssueCertificateResponse:
        return keys_pb2.IssueCertificateResponse()

    def GetStatus(self, request: Any, context: Any) -> keys_pb2.GetStatusResponse:
        return keys_pb2.GetStatusResponse(provider="embedded", state="ready")

    def GetTrustBundle(self, request: Any, context: Any) -> keys_pb2.GetTrustBundleResponse:
        raise SealwardError(Reason.FIELD_INVALID, "no", field="somewhere", retry_after=2.0)

    def OpenBranchKey(self, request: Any, context: Any) -> keys_pb2.OpenBranchKeyResponse:
        raise ValueError("SECRET-IN-AN-EXCEPTION")


class Rig:
    def __init__(self, authority: Any, tmp_path: Any) -> None:
        self.authority = authority
        settings = ServiceSettings(data_dir=tmp_path, enroll_dir=tmp_path, workers=64)
        registry = CollectorRegistry()
        me = authority.issue(f"spiffe://{TD}/service/keys", dns=(f"keys.{TD}",))
        self.ctx: ServiceContext[Any] = ServiceContext(
            "keys", settings, get_logger("keys"), Credentials(me), Health(), registry,
            ServerMetrics(registry), PeerReader(TD, Revocations()),
        )  # fmt: skip
        ctx = self.ctx
        ctx.revocations.learn(1, [])
        self.seen: list[tuple[str, str, str]] = []
        self.front = UnaryFront([INFER], ctx.peers, ctx.server_metrics, ctx.log)
        self.batches = BatchFront(
            APPEND,
            AppendRequest,
            AppendResponse,
            ctx.peers,
            ctx.log,
            shared_field="checkpoint",
            around=self.around,
        )
        self.server = GrpcServer(
            ctx,
            servicers=[(keys_pb2_grpc.add_KeysServiceServicer_to_server, KeysServicer())],
            fronts=[self.front, self.batches],
            max_message_bytes=4096,
            around=self.around,
        )
        self.server.start()
        ctx.health.set("process", ready=True)

    def around(self, call: Any, proceed: Any) -> Any:
        try:
            return proceed()
        except SealwardError as error:
            self.seen.append((call.peer.identity.role, call.method, error.reason.name))
            call.trailers.append(("sealward-event-id", "recorded"))
            raise

    def channel(self, material: Material) -> grpc.Channel:
        return grpc.secure_channel(
            self.server.address,
            Credentials(material).channel(),
            [("grpc.ssl_target_name_override", f"keys.{TD}")],
        )

    def as_(self, path: str) -> grpc.Channel:
        return self.channel(self.authority.issue(f"spiffe://{TD}/{path}"))


@pytest.fixture
def rig(authority: Any, tmp_path: Any) -> Iterator[Rig]:
    found = Rig(authority, tmp_path)
    yield found
    found.server.drain(0.2)


def info_of(error: grpc.RpcError) -> ErrorInfo:
    status = Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])  # type: ignore[attr-defined]
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "sealward"
    return info


def failing(call: Any, request: Any, **kwargs: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10, **kwargs)
    return caught.value


def test_reasons_equal_the_proto_enum() -> None:
    proto = {n.removeprefix("REASON_"): v for n, v in errors_pb2.Reason.items() if v}
    assert proto == {r.name: r.value for r in Reason}
    assert set(CODES) == set(Reason)


def test_table_names_only_rpcs_that_exist() -> None:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(sealward.api.__path__, "sealward.api.")
        if found.name.endswith("_pb2")
    ]
    ours = {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    foreign = {m for m in RPCS if m.split("/")[1].startswith(("grpc.", "opentelemetry."))}
    assert set(RPCS) - foreign == ours


def test_identity_and_errors(rig: Rig) -> None:
    with rig.as_("service/audit") as channel:
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"
        error = failing(stub.GetTrustBundle, keys_pb2.GetTrustBundleRequest())
        assert info_of(error).reason == "FIELD_INVALID"
        assert info_of(error).metadata["field"] == "somewhere"
        error = failing(stub.OpenBranchKey, keys_pb2.OpenBranchKeyRequest())
        assert error.code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
        assert "SECRET" not in str(error)
        assert len(info_of(error).metadata["incident"]) == 16
        big = keys_pb2.OpenBranchKeyRequest(wrapped=b"x" * 5000)
        assert info_of(failing(stub.OpenBranchKey, big)).reason == "MESSAGE_TOO_LARGE"
        odd = channel.unary_unary("//sealward.api.keys.v1.KeysService/GetStatus")
        assert info_of(failing(odd, b"")).reason == "METHOD_UNKNOWN"
        raw = channel.unary_unary("/sealward.api.keys.v1.KeysService/GetStatus")
        assert info_of(failing(raw, b"\xff\xff")).reason == "REQUEST_MALFORMED"
    with rig.as_("user/mallory") as channel:
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        error = failing(stub.GetStatus, keys_pb2.GetStatusRequest())
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
        assert info_of(error).reason == "IDENTITY_FORBIDDEN"


@pytest.mark.parametrize(
    "uris", [(), ("spiffe://sealward.local/user/a", "spiffe://sealward.local/user/b"),
             ("spiffe://other.domain/service/audit",), ("https://sealward.local/x",)]
)  # fmt: skip
def test_certificates_without_one_good_name_are_refused(rig: Rig, uris: tuple[str, ...]) -> None:
    with rig.channel(rig.authority.issue(*uris)) as channel:
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        error = failing(stub.GetStatus, keys_pb2.GetStatusRequest())
        assert info_of(error).reason == "IDENTITY_INVALID"


def test_the_handshake_refuses_strangers(rig: Rig) -> None:
    stranger = type(rig.authority)("other-ca")
    foreign = stranger.issue(f"spiffe://{TD}/service/audit", bundle=rig.authority.pem)
    expired = rig.authority.issue(f"spiffe://{TD}/service/audit", seconds=1)
    deadline = time.time() + 10
    while time.time() <= expired.not_after and time.time() < deadline:
        threading.Event().wait(0.05)
    nobody = grpc.ssl_channel_credentials(rig.authority.pem)
    name = [("grpc.ssl_target_name_override", f"keys.{TD}")]
    for channel in (
        rig.channel(foreign),
        rig.channel(expired),
        grpc.secure_channel(rig.server.address, nobody, name),
        grpc.insecure_channel(rig.server.address),
    ):
        with channel:
            stub = keys_pb2_grpc.KeysServiceStub(channel)
            error = failing(stub.GetStatus, keys_pb2.GetStatusRequest())
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


def test_an_open_connection_ends_with_its_certificate(rig: Rig) -> None:
    material = rig.authority.issue(f"spiffe://{TD}/service/audit", seconds=2)
    with rig.channel(material) as channel:
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"
        while time.time() <= material.not_after:
            threading.Event().wait(0.05)
        error = failing(stub.GetStatus, keys_pb2.GetStatusRequest())
        assert info_of(error).reason == "IDENTITY_INVALID"


def test_a_revoked_certificate_does_nothing_more_on_an_open_connection(rig: Rig) -> None:
    material = rig.authority.issue(f"spiffe://{TD}/service/audit")
    release = threading.Event()

    def nothing() -> Iterator[bytes]:
        release.wait(60)
        yield from ()

    with rig.channel(material) as channel, rig.as_("service/audit") as other:
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=30)
        batches = channel.stream_stream(APPEND)(nothing(), timeout=30)
        batches.initial_metadata()
        spared = other.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=30)
        assert next(watch)
        assert next(spared)
        assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"
        rig.ctx.revocations.learn(2, [material.serial])
        # Open streams are cut, calls are refused, and both are recorded under the caller's name.
        for stream in (watch, batches):
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        release.set()
        rig.seen.clear()
        for call in (
            channel.unary_unary("/sealward.api.keys.v1.KeysService/GetStatus"),
            channel.unary_unary("/no/such"),
        ):
            error = failing(call, b"")
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
            assert info_of(error).reason == "CERTIFICATE_REVOKED"
        with pytest.raises(grpc.RpcError) as caught:
            next(channel.stream_stream(APPEND)(iter([b""]), timeout=10))
        assert info_of(caught.value).reason == "CERTIFICATE_REVOKED"
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert info_of(failing(health, b"")).reason == "CERTIFICATE_REVOKED"
        assert {(who, reason) for who, _, reason in rig.seen} == {
            ("service/audit", "CERTIFICATE_REVOKED")
        }
        assert [method for _, method, _ in rig.seen] == [
            "/sealward.api.keys.v1.KeysService/GetStatus", "unknown", APPEND,
        ]  # fmt: skip
        # Another certificate of the same identity is as good as before.
        fine = keys_pb2_grpc.KeysServiceStub(other)
        assert fine.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"
        rig.ctx.health.set("process", ready=False)
        assert next(spared)


def test_who_calls_with_a_revoked_certificate_is_told_to_the_hot_path(rig: Rig) -> None:
    material = rig.authority.issue(f"spiffe://{TD}/user/ann")
    rig.ctx.revocations.learn(2, [material.serial])
    with rig.channel(material) as channel:
        future = channel.unary_unary(INFER).future(b"x", timeout=10)
        (call,) = rig.front.recv()
        assert call.peer.identity.name == "ann"
        assert call.problem is not None
        rig.front.reply([Answer(call.id, error=call.problem)])
        with pytest.raises(grpc.RpcError) as caught:
            future.result()
    assert info_of(caught.value).reason == "CERTIFICATE_REVOKED"


def test_without_a_confirmed_list_nobody_is_served_but_health(rig: Rig) -> None:
    now = [0.0]
    revocations = Revocations(10.0, lambda: now[0])
    rig.ctx.peers.revocations = revocations
    with rig.as_("service/audit") as channel:
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        health = channel.unary_unary("/grpc.health.v1.Health/Check")

        def refused() -> bool:
            error = failing(stub.GetStatus, keys_pb2.GetStatusRequest())
            assert info_of(error).reason == "REVOCATIONS_UNKNOWN"
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            return bool(health(b"", timeout=10))

        assert refused()
        revocations.learn(1, [])
        assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"
        now[0] = 10.0
        assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"
        now[0] = 10.1
        assert refused()
        revocations.confirm(1)
        assert stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state == "ready"


def test_tls_12_is_refused(rig: Rig) -> None:
    refuse_old_tls(rig.server.address)
    # The check itself can fail: the same dial with 1.3 allowed gets through the handshake.
    host, _, port = rig.server.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain) as secure,
    ):
        assert secure.version() == "TLSv1.3"


def test_unary_front_carries_batches(rig: Rig) -> None:
    def serve() -> None:
        while calls := rig.front.recv():
            rig.front.reply(
                [
                    Answer(c.id, c.body[::-1], trailers=(("sealward-event-id", "e"),))
                    if c.metadata.get("sealward-purpose") == "TREAT"
                    else Answer(
                        c.id,
                        error=SealwardError(Reason.PURPOSE_REQUIRED, "name a purpose"),
                        trailers=(("sealward-event-id", "d"),),
                    )
                    for c in calls
                ]
            )

    threading.Thread(target=serve, daemon=True).start()
    with rig.as_("user/ann") as channel:
        infer = channel.unary_unary(INFER)
        futures = [
            infer.future(bytes([n, 1]), metadata=(("sealward-purpose", "TREAT"),), timeout=10)
            for n in range(40)
        ]
        assert [f.result() for f in futures] == [bytes([1, n]) for n in range(40)]
        assert dict(futures[0].trailing_metadata())["sealward-event-id"] == "e"
        error = failing(infer, b"x")
        assert info_of(error).reason == "PURPOSE_REQUIRED"
        assert dict(error.trailing_metadata())["sealward-event-id"] == "d"  # type: ignore[attr-defined]


def test_refusals_without_a_handler_are_recorded(rig: Rig) -> None:
    with rig.as_("user/mallory") as channel:
        error = failing(channel.unary_unary("/CANARY.Service/CANARY"), b"")
        assert dict(error.trailing_metadata())["sealward-event-id"] == "recorded"
        with pytest.raises(grpc.RpcError) as caught:
            next(channel.stream_stream(APPEND)(iter([b""])))
        assert info_of(caught.value).reason == "IDENTITY_FORBIDDEN"
    assert rig.seen == [
        ("user", "unknown", "METHOD_UNKNOWN"),
        ("user", APPEND, "IDENTITY_FORBIDDEN"),
    ]


def test_calls_without_a_message_hold_up_nobody(rig: Rig) -> None:
    release = threading.Event()

    def nothing() -> Iterator[bytes]:
        release.wait(60)
        yield from ()

    with rig.as_("user/mallory") as flood, rig.as_("service/audit") as channel:
        calls = [
            flood.stream_unary(method).future(nothing())
            for method in (INFER, "/sealward.api.keys.v1.KeysService/GetStatus", "/a/b")
            for _ in range(40)
        ]
        stub = keys_pb2_grpc.KeysServiceStub(channel)
        deadline = time.monotonic() + 30
        states: list[str] = []
        while not states and time.monotonic() < deadline:
            with suppress(grpc.RpcError):
                states.append(stub.GetStatus(keys_pb2.GetStatusRequest(), timeout=10).state)
        assert states == ["ready"]
        for call in calls:
            call.cancel()
        release.set()


def test_a_call_without_a_message_is_none_with_an_empty_one(rig: Rig) -> None:
    with rig.as_("service/audit") as channel:
        ask = channel.stream_unary("/sealward.api.keys.v1.KeysService/GetStatus")
        answer = ask(iter([b""]), timeout=10)
        assert keys_pb2.GetStatusResponse.FromString(answer).state == "ready"
        assert info_of(failing(ask, iter([]))).reason == "REQUEST_MALFORMED"


def test_streams_of_answers_are_few(rig: Rig) -> None:
    with rig.as_("user/mallory") as flood, rig.as_("user/ann") as channel:
        watch = "/grpc.health.v1.Health/Watch"
        streams = [flood.unary_stream(watch)(b"") for _ in range(4)]
        assert all(next(stream) for stream in streams)
        with pytest.raises(grpc.RpcError) as caught:
            next(flood.unary_stream(watch)(b"", timeout=10))
        assert info_of(caught.value).reason == "OVERLOADED"
        other = channel.unary_stream(watch)(b"", timeout=10)
        assert next(other)
        for stream in [*streams, other]:
            stream.cancel()


def test_unary_front_keeps_the_deadline(rig: Rig) -> None:
    with rig.as_("user/ann") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFER)(b"x", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    (call,) = rig.front.recv()
    deadline = time.monotonic() + 5
    while not rig.front.cancelled(call.id) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert rig.front.cancelled(call.id)
    rig.front.reply([Answer(call.id, b"late")])  # nobody waits: harmless


class Collector:
    def __init__(self) -> None:
        self.replies: dict[int, bytes] = {}
        self.shared: set[bytes] = set()
        self.broken: list[int] = []
        self.changed = threading.Condition()

    def on_replies(self, replies: Sequence[Any], shared: bytes) -> None:
        with self.changed:
            self.shared.add(shared)
            for reply in replies:
                assert reply.id not in self.replies
                self.replies[reply.id] = reply.body
            self.changed.notify_all()

    def on_broken(self, ids: Sequence[int]) -> None:
        with self.changed:
            self.broken += ids
            self.changed.notify_all()

    def wait(self, condition: Any) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=20)


def test_batch_streams_survive_renewal_and_loss(rig: Rig, authority: Any) -> None:
    serving = threading.Event()
    serving.set()

    def serve() -> None:
        while calls := rig.batches.recv():
            serving.wait(20)
            rig.batches.reply([Answer(c.id, c.body + b"!" + c.trace) for c in calls], b"common")

    threading.Thread(target=serve, daemon=True).start()
    credentials = Credentials(authority.issue(f"spiffe://{TD}/service/gateway"))
    channels = Channels(credentials, rig.server.address, f"keys.{TD}")
    seen, health = Collector(), Health()
    upstream = BatchUpstream(
        channels, APPEND, AppendRequest, AppendResponse, seen.on_replies, seen.on_broken,
        log=get_logger("test"), health=health, part="audit",
        unavailable=Reason.AUDIT_UNAVAILABLE, shared_field="checkpoint",
    )  # fmt: skip
    with pytest.raises(SealwardError):
        upstream.send([OutCall(0, "m", b"")])
    upstream.start()
    deadline = time.monotonic() + 20
    while not health.ready and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    upstream.send([OutCall(n, "m", b"%d" % n, 5000) for n in range(100)])
    seen.wait(lambda: len(seen.replies) == 100)
    assert seen.replies[7] == b"7!"
    upstream.send([OutCall(150, "m", b"traced", trace=b"t" * 24)])
    seen.wait(lambda: 150 in seen.replies)
    assert seen.replies[150] == b"traced!" + b"t" * 24
    assert seen.shared == {b"common"}

    # A renewal swaps the stream; calls on the old one are still answered.
    serving.clear()
    upstream.send([OutCall(200, "m", b"old")])
    first = upstream._stream
    credentials.install(authority.issue(f"spiffe://{TD}/service/gateway"))
    upstream._changed.set()
    deadline = time.monotonic() + 20
    while upstream._stream is first and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    upstream.send([OutCall(201, "m", b"new")])
    serving.set()
    seen.wait(lambda: {200, 201} <= set(seen.replies))

    # A server that goes away gives back what it owed, once.
    serving.clear()
    upstream.send([OutCall(300, "m", b"x"), OutCall(301, "m", b"x")])
    rig.server.drain(0.1)
    seen.wait(lambda: len(seen.broken) == 2)
    assert sorted(seen.broken) == [300, 301]
    assert not health.ready
    serving.set()
    upstream.stop()


def test_calls_gather_while_messages_are_under_way(rig: Rig, authority: Any) -> None:
    batches: list[int] = []
    serving = threading.Event()

    def serve() -> None:
        while calls := rig.batches.recv():
            batches.append(len(calls))
            serving.wait(20)
            rig.batches.reply([Answer(c.id, b"") for c in calls])

    threading.Thread(target=serve, daemon=True).start()
    credentials = Credentials(authority.issue(f"spiffe://{TD}/service/gateway"))
    seen, health = Collector(), Health()
    upstream = BatchUpstream(
        Channels(credentials, rig.server.address, f"keys.{TD}"),
        APPEND, AppendRequest, AppendResponse, seen.on_replies, seen.on_broken,
        log=get_logger("test"), health=health, part="audit",
        unavailable=Reason.AUDIT_UNAVAILABLE, window=1,
    )  # fmt: skip
    upstream.start()
    deadline = time.monotonic() + 20
    while not health.ready and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    for n in range(50):
        upstream.send([OutCall(n, "m", b"x")])
    serving.set()
    seen.wait(lambda: len(seen.replies) == 50)
    # One message under way, all others in the next.
    assert batches == [1, 49]
    serving.clear()
    upstream.send([OutCall(100, "m", b"x")])
    upstream.send([OutCall(101, "m", b"x")])  # gathered, not sent yet
    rig.server.drain(0.1)
    seen.wait(lambda: len(seen.broken) == 2)
    assert sorted(seen.broken) == [100, 101]
    serving.set()
    upstream.stop()


def test_a_stream_whose_answers_are_not_taken_is_read_no_further(
    rig: Rig, authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealward.kit.grpcio_front._STREAM_CALLS", 50)
    monkeypatch.setattr("sealward.kit.grpcio_front._STREAM_BYTES", 1 << 20)

    def serve() -> None:
        while calls := rig.batches.recv():
            rig.batches.reply([Answer(c.id, bytes(16 << 10)) for c in calls])

    threading.Thread(target=serve, daemon=True).start()
    # A small window, so that what is not read fills it soon.
    window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    credentials = Credentials(authority.issue(f"spiffe://{TD}/service/gateway")).channel()
    name = [("grpc.ssl_target_name_override", f"keys.{TD}")]
    channel = grpc.secure_channel(rig.server.address, credentials, [*window, *name])
    messages = 400
    sent = 0

    def requests() -> Iterator[bytes]:
        nonlocal sent
        for number in range(messages):
            sent += 1
            calls = [CallMessage(id=number, body=bytes(100_000))]
            yield AppendRequest(calls=calls).SerializeToString()

    answers = channel.stream_stream(APPEND, None, None)(requests())

    def stream() -> Any:
        return next(iter(rig.batches._streams), None)

    other, health = Collector(), Health()
    upstream = BatchUpstream(
        Channels(Credentials(authority.issue(f"spiffe://{TD}/service/gateway")),
                 rig.server.address, f"keys.{TD}"),
        APPEND, AppendRequest, AppendResponse, other.on_replies, other.on_broken,
        log=get_logger("test"), health=health, part="audit",
        unavailable=Reason.AUDIT_UNAVAILABLE,
    )  # fmt: skip
    with closing(channel):
        until(lambda: stream() is not None and stream().paused)
        # Beyond the bound are at most the answers of the calls that were taken before.
        assert stream().held < (1 << 20) + 51 * (17 << 10)
        # Others are served meanwhile.
        upstream.start()
        until(lambda: health.ready)
        upstream.send([OutCall(1, "m", b"x")])
        other.wait(lambda: len(other.replies) == 1)
        assert sent < messages
        # Who reads after all gets every answer once.
        seen = [reply.id for raw in answers for reply in AppendResponse.FromString(raw).replies]
        assert sorted(seen) == list(range(messages))
        assert not other.broken
        upstream.stop()


def test_a_stream_that_was_held_ends_with_its_caller(
    rig: Rig, authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealward.kit.grpcio_front._STREAM_CALLS", 5)
    channel = rig.as_("service/gateway")
    calls = [CallMessage(id=n, body=b"x") for n in range(9)]
    message = AppendRequest(calls=calls).SerializeToString()
    answers = channel.stream_stream(APPEND, None, None)(iter([message] * 3))
    # Nobody answers: it is held for what it sent.
    with closing(channel):
        until(lambda: any(s.paused for s in rig.batches._streams))
        taken = rig.batches.recv()
        assert len(taken) == 9
        answers.cancel()
    rig.batches.reply([Answer(call.id, bytes(1 << 20)) for call in taken])
    until(lambda: not rig.batches._streams and not rig.batches._open)
    until(lambda: "stream-reader" not in {t.name for t in threading.enumerate()})


def test_first_calls_at_once_are_all_counted() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    threads = 2
    inside = threading.Barrier(threads)

    class Slow:
        """Labels that come when both threads have asked, or a moment later."""

        def labels(self, *values: str) -> Any:
            with suppress(threading.BrokenBarrierError):
                inside.wait(0.2)
            return real.labels(*values)

    real, metrics._seconds = metrics._seconds, Slow()  # type: ignore[assignment]
    failed: list[BaseException] = []

    def count() -> None:
        try:
            metrics.handled(INFER, Code.OK, 0.1)
        except KeyError as error:
            failed.append(error)

    running = [threading.Thread(target=count) for _ in range(threads)]
    running[0].start()
    while not (metrics._bound or inside.n_waiting):
        threading.Event().wait(0.001)
    running[1].start()
    for thread in running:
        thread.join()
    assert failed == []


def test_settings_refuse_what_they_do_not_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    class Settings(ServiceSettings):
        model_config = settings_config("probe")

    monkeypatch.setenv("SEALWARD_PROBE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SEALWARD_PROBE_ENROLL_DIR", str(tmp_path))
    assert load(Settings, "probe").data_dir == tmp_path
    monkeypatch.setenv("SEALWARD_PROBE_WORKERS", "SECRET")
    with pytest.raises(StartupError, match="SEALWARD_PROBE_WORKERS") as caught:
        load(Settings, "probe")
    assert "SECRET" not in str(caught.value)
    monkeypatch.setenv("SEALWARD_PROBE_WORKERS", "9")
    monkeypatch.setenv("SEALWARD_PROBE_WROKERS", "9")
    with pytest.raises(StartupError, match="unknown setting SEALWARD_PROBE_WROKERS"):
        load(Settings, "probe")


def test_log_lines_carry_no_payload(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("test").info("said", payload="CANARY", reason="fine", count=[1], password="CANARY")
    line = capsys.readouterr().out
    assert "CANARY" not in line
    assert '"reason": "fine"' in line
    assert '"dropped": 3' in line


def test_a_log_on_a_full_disk_fails_no_call() -> None:
    with Path("/dev/full").open("w") as full:
        get_logger("test", full).info("said", reason="fine")
        full.write("x")  # what is left in the buffer must not fail the closing either
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.parametrize(
    "uri", ["", "spiffe://a/user/", "spiffe://a/user/x/y", "spiffe://a/root/x", "spiffe://A/user/x",
            "spiffe://a/user/x?y", "spiffe://a/user/../x"]
)  # fmt: skip
def test_odd_identities_are_refused(uri: str) -> None:
    with pytest.raises(SealwardError):
        parse_identity(uri)


@pytest.mark.parametrize("seconds", [4, 30, 110, 600, 3600, 86_400])
def test_a_long_stream_is_opened_anew_before_its_connection_ends(seconds: int) -> None:
    """The core ends a connection a tenth sooner or later; a stream that is cut loses calls."""
    assert stream_age(seconds) < 0.9 * connection_age(seconds)
    assert connection_age(seconds) < seconds / 4
