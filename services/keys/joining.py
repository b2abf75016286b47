"""Join tokens, and the one listener that a machine without a certificate may talk to.

A token is 256 random bits for one identity, good once and for a short while; the register has its
SHA-256. The listener asks for no client certificate, serves `Enroll` and nothing else, and is off
unless it is given an address: docs/adr/0026-joining.md.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from google.protobuf.message import DecodeError

from sealward.api.keys.v1 import enroll_pb2
from sealward.kit import status
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Identity, parse_identity
from sealward.kit.joining import TOKEN_BYTES, spki_sha256
from sealward.kit.oldtls import refuse_old_tls
from sealward.kit.pinning import Pins
from sealward.kit.reasons import Code, Reason
from sealward.kit.settings import split_address
from sealward.kit.tls import Material
from services.keys.profiles import Lives, parse_der_request, profile_of
from services.keys.records import Recorder, RefusalLimit, about_actor
from services.keys.register import Register
from services.keys.revocations import Issuance
from services.keys.settings import KeysSettings

METHOD = "/sealward.api.keys.v1.EnrollService/Enroll"
DEFAULT_SECONDS = 300
SHORTEST_SECONDS, LONGEST_SECONDS = 10, 3600
_MAY_JOIN = frozenset({"service", "workload", "user"})
_LARGEST_BYTES = 32 << 10
_THREADS = 8
_ATTEMPTS = 5.0
"""Calls a second of one address, and as many at once."""
_PIN_SECONDS = 4.0
"""Shorter than the listener lets a handshake be."""


class JoinTokens:
    """Makes tokens and trades them in. `material` is what the listener shows now."""

    def __init__(
        self,
        register: Register,
        issuance: Issuance,
        lives: Lives,
        trust_domain: str,
        material: Callable[[], Material],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._register = register
        self._issuance = issuance
        self._lives = lives
        self._trust_domain = trust_domain
        self._material = material
        self._clock = clock

    def make(self, identity: Identity, seconds: int) -> tuple[bytes, int]:
        """Make a token; return it and its end (epoch seconds). Raises IDENTITY_FORBIDDEN."""
        if (
            identity.kind not in _MAY_JOIN
            or identity.role == "service/keys"
            or identity.trust_domain != self._trust_domain
        ):
            raise SealwardError(
                Reason.IDENTITY_FORBIDDEN,
                "a token is for a service but keys, a workload or a user of this trust domain",
                field="spiffe_id",
            )
        profile_of(identity, self._lives)
        token = secrets.token_bytes(TOKEN_BYTES)
        now = int(self._clock())
        self._register.add_token(hashlib.sha256(token).digest(), identity.uri, now, now + seconds)
        return token, now + seconds

    def authority(self) -> x509.Certificate:
        """The authority of the certificate that the listener shows: the one to trust on joining."""
        material = self._material()
        leaf = x509.load_pem_x509_certificate(material.chain_pem)
        for found in x509.load_pem_x509_certificates(material.bundle_pem):
            try:
                leaf.verify_directly_issued_by(found)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return found
        raise SealwardError(Reason.KEYSTORE_UNAVAILABLE, "the authority is not in the bundle")

    def trade(
        self, request: enroll_pb2.EnrollRequest, told: Callable[[str], None]
    ) -> tuple[Identity, enroll_pb2.EnrollResponse]:
        """Use the token up and issue its certificate; `told` hears whom the token was made for.

        Raises JOIN_TOKEN_UNKNOWN, _USED, _EXPIRED or _MISMATCH, CERTIFICATE_REQUEST_INVALID and
        KEYSTORE_UNAVAILABLE.
        """
        # Whoever revokes the identity meanwhile finds the token unused, or the certificate issued.
        with self._register.held():
            now = int(self._clock())
            row = self._register.use_token(hashlib.sha256(request.token).digest(), now)
            if row is None:
                raise SealwardError(Reason.JOIN_TOKEN_UNKNOWN, "there is no such join token")
            told(row.identity)
            if row.used_at:
                raise SealwardError(
                    Reason.JOIN_TOKEN_USED, "the join token was used before: make a new one"
                )
            if row.expires_at <= now:
                raise SealwardError(
                    Reason.JOIN_TOKEN_EXPIRED, "the join token has expired: make a new one"
                )
            if request.spiffe_id != row.identity:
                raise SealwardError(
                    Reason.JOIN_TOKEN_MISMATCH,
                    "the join token is for another identity",
                    field="spiffe_id",
                )
            if request.ca_spki_sha256 != spki_sha256(self.authority()):
                raise SealwardError(
                    Reason.JOIN_TOKEN_MISMATCH,
                    "the join token is for another certificate authority: make a new one",
                    field="ca_spki_sha256",
                )
            identity = parse_identity(row.identity)
            issued = self._issuance.issue(
                profile_of(identity, self._lives), parse_der_request(request.csr)
            )
        return identity, enroll_pb2.EnrollResponse(
            certificate_pem=issued.chain_pem.decode("ascii"),
            bundle_pem=self._issuance.bundle_pem.decode("ascii"),
            not_after=issued.not_after,
        )


class JoinListener:
    """A gRPC server for Enroll alone, over TLS 1.3 without a client certificate."""

    def __init__(
        self, ctx: ServiceContext[KeysSettings], tokens: JoinTokens, recorder: Recorder
    ) -> None:
        self._ctx = ctx
        self._tokens = tokens
        self._recorder = recorder
        self._attempts = RefusalLimit(_ATTEMPTS)
        self._refusals = RefusalLimit()
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="join"),
            maximum_concurrent_rpcs=_THREADS,
            options=[
                ("grpc.max_receive_message_length", _LARGEST_BYTES),
                ("grpc.max_metadata_size", 4 << 10),
                ("grpc.so_reuseport", 0),
                # Whoever connects and does nothing is soon gone.
                ("grpc.server_handshake_timeout_ms", 5_000),
                ("grpc.max_connection_idle_ms", 5_000),
                ("grpc.max_connection_age_ms", 10_000),
                ("grpc.max_connection_age_grace_ms", 5_000),
            ],
        )
        service, _, name = METHOD[1:].partition("/")
        handler: Any = grpc.unary_unary_rpc_method_handler(self._enroll)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: handler}),)
        )
        host, port = split_address(ctx.settings.join_address)
        try:
            bound = self._server.add_secure_port(f"{host}:{port}", ctx.credentials.server_alone())
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartupError(f"cannot listen on {ctx.settings.join_address}: is it in use?")
        self.address = f"{host}:{bound}"
        self._pins = Pins((host, bound), _PIN_SECONDS)

    def start(self) -> None:
        """Serve; raise StartupError when the listener accepts TLS 1.2."""
        self._server.start()
        self._ctx.credentials.before_change(self._pins.pin)
        refuse_old_tls(self.address)
        self._ctx.log.info("join.listening", address=self.address)

    def stop(self, grace: float) -> None:
        """Let calls in flight end within `grace` seconds."""
        self._server.stop(grace).wait(grace + 1.0)
        self._pins.close()

    def _enroll(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        started = time.perf_counter()
        code = Code.OK
        whom: list[str] = []
        try:
            if context.auth_context().get("ssl_tls_version", (b"",))[0] != b"TLSv1.3":
                raise SealwardError(Reason.IDENTITY_INVALID, "TLS 1.3 is required")
            if not self._attempts.admit(context.peer().rpartition(":")[0]):
                raise SealwardError(
                    Reason.RATE_LIMITED, "too many attempts from this address", retry_after=1.0
                )
            try:
                request = enroll_pb2.EnrollRequest.FromString(body)
            except DecodeError:
                raise SealwardError(
                    Reason.REQUEST_MALFORMED, "the request is not a message of its type"
                ) from None
            identity, response = self._tokens.trade(request, whom.append)
            self._recorder.record(
                "keys.join",
                "ok",
                code=Code.OK.name,
                target=identity.uri,
                rpc_method=METHOD,
                **about_actor(identity),
            )
            self._ctx.log.info("join.done", identity=identity.uri, not_after=response.not_after)
            return response.SerializeToString()
        except Exception as caught:  # noqa: BLE001 - every error leaves through one door
            error, incident = status.as_sealward_error(caught, self._ctx.log, METHOD)
            error = self._refused(error, context, whom)
            code = error.code
            status.abort(context, error, (), incident)
        finally:
            self._ctx.server_metrics.handled(METHOD, code, time.perf_counter() - started)

    def _refused(
        self, error: SealwardError, context: grpc.ServicerContext, whom: list[str]
    ) -> SealwardError:
        """Record a refusal; return what is to be answered.

        The caller is nobody yet. Where the token is one of ours, the record names whom it was for.
        """
        stands_for = self._refusals.admit("")
        if not stands_for:
            return error
        self._ctx.log.warning(
            "join.refused",
            reason=error.reason.name,
            identity=whom[0] if whom else "",
            address=context.peer(),
        )
        try:
            self._recorder.record(
                "keys.join",
                "denied",
                code=error.code.name,
                reason=error.reason.name,
                target=whom[0] if whom else None,
                count=stands_for,
                rpc_method=METHOD,
            )
        except SealwardError as lost:
            return lost
        return error
