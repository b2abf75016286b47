"""The gateway, put together: the one place that constructs its parts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis

from sealward.api.audit.v1.audit_pb2 import AppendRequest, AppendResponse
from sealward.api.common.v1.holder_pb2_grpc import add_HolderServiceServicer_to_server
from sealward.api.gateway.v1 import (
    access_pb2_grpc,
    deid_pb2_grpc,
    destruction_pb2_grpc,
    factor_pb2_grpc,
    gateway_pb2_grpc,
    membership_pb2_grpc,
    oidc_pb2_grpc,
    policy_pb2_grpc,
    quota_pb2_grpc,
    review_pb2_grpc,
    workload_pb2_grpc,
)
from sealward.api.inference.v1.inference_pb2 import InferRequest, InferResponse
from sealward.api.oip.v2 import open_inference_pb2_grpc
from sealward.kit.channel import Channels
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.grpcio_front import UnaryFront
from sealward.kit.grpcio_upstream import BatchUpstream
from sealward.kit.holding import Holders, HolderServicer
from sealward.kit.keymetrics import LeaseMetrics
from sealward.kit.keysclient import KeyRing, KeysServiceSource
from sealward.kit.logging import where
from sealward.kit.reasons import Reason
from sealward.kit.server import GrpcServer, stream_age
from services.gateway.access_servicer import AccessServicer
from services.gateway.admission import Admission
from services.gateway.authority import Authority
from services.gateway.catalog import Catalog
from services.gateway.challenges import Challenges
from services.gateway.control import ControlRecorder
from services.gateway.deid_servicer import DeidServicer
from services.gateway.denials import DenialLimit
from services.gateway.destruction_servicer import DestructionServicer
from services.gateway.events import EventWriter
from services.gateway.exchange import Exchange
from services.gateway.factor_servicer import FactorServicer
from services.gateway.factors.factors import Factors
from services.gateway.factors.keys import SecurityKeys
from services.gateway.factors.store import FactorStore
from services.gateway.factors.webauthn import RelyingParty
from services.gateway.grants import Grants
from services.gateway.hashing import HashProcess
from services.gateway.ledgers import Ledgers
from services.gateway.lockouts import Lockouts
from services.gateway.membership_servicer import MembershipServicer
from services.gateway.memberships import Memberships
from services.gateway.metrics import GatewayMetrics
from services.gateway.offboarding import Offboarding
from services.gateway.oidc.assembly import make_logins
from services.gateway.oidc.identities import Identities
from services.gateway.oidc_servicer import OidcServicer
from services.gateway.oip import InferenceServicer
from services.gateway.passwords import Passwords
from services.gateway.pipeline import METHOD, Pipeline, audit_lost
from services.gateway.policy import load_policy
from services.gateway.policy.changes import PolicyChanges
from services.gateway.policy.store import PolicyStore
from services.gateway.policy_servicer import PolicyServicer
from services.gateway.quota_servicer import QuotaServicer
from services.gateway.quotas import Quotas
from services.gateway.review_servicer import AccessReviewServicer
from services.gateway.sealing import SessionSealer
from services.gateway.servicer import LogServicer, SessionServicer, UserServicer
from services.gateway.sessions import SessionStore, make_pool
from services.gateway.settings import GatewaySettings
from services.gateway.spent import Spent
from services.gateway.steady import steady_time
from services.gateway.storetls import StoreTls, connection_options
from services.gateway.streams import StreamGuard
from services.gateway.subjects import Subjects
from services.gateway.surrogates import Surrogates
from services.gateway.throttle import LoginThrottle
from services.gateway.users import UserDirectory
from services.gateway.workload_servicer import METHOD as ISSUE_TOKEN
from services.gateway.workload_servicer import WorkloadServicer
from services.gateway.workloads.clients import ClientDirectory

_TICK_SECONDS = 0.05
_SUMMARY_SECONDS = 60.0
_LOGIN_SECONDS = 300.0
_CHALLENGE_SECONDS = 120.0
_CATCH_UP_SECONDS = 5.0
_APPEND = "/sealward.api.audit.v1.AuditService/Append"
_INFER = "/sealward.api.inference.v1.InferenceService/Infer"


def _inference_lost() -> SealwardError:
    return SealwardError(
        Reason.INFERENCE_UNAVAILABLE, "inference cannot be reached", retry_after=1.0
    )


def _late() -> SealwardError:
    return SealwardError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the answer")


class Gateway:
    """The composed service: see kit.context.App."""

    def __init__(self, ctx: ServiceContext[GatewaySettings]) -> None:
        settings, health, log = ctx.settings, ctx.health, ctx.log
        self._ctx = ctx
        self._stop = threading.Event()

        self._all_channels = audit_channels, inference_channels, keys_channels = (
            self._channels("audit", settings.audit_address),
            self._channels("inference", settings.inference_address),
            self._channels("keys", settings.keys_address),
        )

        self._audit = Exchange(audit_lost, audit_lost)
        self._inference = Exchange(_inference_lost, _late)
        max_age = stream_age(settings.certificate_seconds)
        self._to_audit = BatchUpstream(
            audit_channels, _APPEND, AppendRequest, AppendResponse,
            self._audit.on_replies, self._audit.on_broken,
            log=log, health=health, part="audit", unavailable=Reason.AUDIT_UNAVAILABLE,
            max_age_seconds=max_age, shared_field="checkpoint", window=settings.audit_window,
        )  # fmt: skip
        self._to_inference = BatchUpstream(
            inference_channels, _INFER, InferRequest, InferResponse,
            self._inference.on_replies, self._inference.on_broken,
            log=log, health=health, part="inference", unavailable=Reason.INFERENCE_UNAVAILABLE,
            max_age_seconds=max_age, window=settings.inference_window,
        )  # fmt: skip
        self._audit.bind(self._to_audit)
        self._inference.bind(self._to_inference)

        health.set("keys", ready=False)
        self._ring = KeyRing(
            KeysServiceSource(keys_channels),
            on_ready=lambda ready: health.set("keys", ready=ready),
            metrics=LeaseMetrics(ctx.metrics),
        )
        self._pool, self._remote_store = pool, _ = _session_pool(ctx)
        self._sealer = SessionSealer(pool, self._ring, log)
        self._passwords = Passwords(
            queue=settings.login_queue, share=settings.login_share, hasher=HashProcess()
        )
        metrics = GatewayMetrics(ctx.metrics)
        self._lockouts = Lockouts(
            settings.data_dir / "lockouts.db", steady_time, failures=settings.lockout_failures,
            source_failures=settings.lockout_source_failures, seconds=settings.lockout_seconds,
            locked=metrics.locked,
        )  # fmt: skip
        throttle = LoginThrottle(time.monotonic, lockouts=self._lockouts)
        self._users = UserDirectory(settings.data_dir / "users.db", self._passwords, throttle)
        self._clients = ClientDirectory(settings.data_dir / "clients.db")
        self._identities = Identities(settings.data_dir / "identities.db")
        self._factor_store = FactorStore(settings.data_dir / "factors.db", self._ring)
        factors = Factors(self._factor_store, throttle, time.time)
        keys = SecurityKeys(
            self._factor_store, _relying(settings),
            Challenges(pool, self._sealer, _CHALLENGE_SECONDS), throttle, time.time,
        )  # fmt: skip
        self._store = SessionStore(
            pool, self._sealer, Ledgers(self._users, self._clients), log,
            idle_seconds=settings.idle_seconds, life_seconds=settings.life_seconds,
            on_state=self._sessions_are,
            mark=self._remote_store.mark if self._remote_store else lambda: None,
        )  # fmt: skip

        self._policies = PolicyStore(settings.data_dir / "policies.db")
        changes = PolicyChanges(
            self._policies,
            load_policy(settings.policy_file, settings.policy_profile),
            fixed=settings.policy_file is not None,
        )
        policy = changes.live
        self._grants = Grants(settings.data_dir / "grants.db", steady_time)
        self._surrogates = Surrogates(settings.data_dir / "deid.db", self._ring)
        quotas = Quotas(pool, steady_time, metrics.quota_refused)
        self._memberships = Memberships(settings.data_dir / "memberships.db")
        authority = Authority(self._store, policy, settings.step_up_seconds, self._memberships.of)
        self._offboarding = Offboarding(
            self._users, self._store, self._grants, keys_channels.get, settings.trust_domain, log
        )
        subjects = Subjects(self._users, self._clients)
        denials, writer = DenialLimit(), EventWriter()
        self._catalog = Catalog(inference_channels.get, settings.time_limit_seconds, log)
        self._front = UnaryFront([METHOD], ctx.peers, ctx.server_metrics, log)

        def audit_ready() -> bool:
            return "audit" not in health.missing

        admission = Admission(
            self._store, policy, self._grants, self._catalog, settings.max_message_bytes,
            settings.step_up_seconds, self._memberships.of, quotas,
        )  # fmt: skip
        self._pipeline = Pipeline(
            self._front, admission, self._inference, self._audit, writer, denials, self._catalog,
            log, audit_ready=audit_ready, append_seconds=settings.append_seconds,
            max_response_bytes=settings.max_response_bytes, max_flights=settings.max_flights,
        )  # fmt: skip
        self._recorder = ControlRecorder(
            self._audit, writer, denials, log,
            audit_ready=audit_ready, append_seconds=settings.append_seconds,
        )  # fmt: skip
        self._server = GrpcServer(
            ctx,
            servicers=[
                (
                    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
                    InferenceServicer(
                        authority, self._inference, self._catalog.knows, lambda: health.ready
                    ),
                ),
                (
                    gateway_pb2_grpc.add_SessionServiceServicer_to_server,
                    SessionServicer(authority, self._users, self._store, factors, keys),
                ),
                (
                    gateway_pb2_grpc.add_UserServiceServicer_to_server,
                    UserServicer(
                        authority,
                        self._users,
                        self._store,
                        self._offboarding,
                        keys_channels.get,
                        settings.trust_domain,
                        self._clients,
                    ),
                ),
                (
                    oidc_pb2_grpc.add_OidcServiceServicer_to_server,
                    OidcServicer(
                        authority,
                        make_logins(
                            settings,
                            Challenges(pool, self._sealer, _LOGIN_SECONDS),
                            self._identities,
                            self._users,
                            self._clients,
                        ),
                        self._identities,
                        self._users,
                        self._store,
                        factors,
                        keys,
                    ),
                ),
                (
                    workload_pb2_grpc.add_WorkloadServiceServicer_to_server,
                    WorkloadServicer(
                        authority,
                        self._clients,
                        self._users,
                        self._store,
                        Spent(pool),
                        audience=settings.assertion_audience
                        or f"https://gateway.{settings.trust_domain}{ISSUE_TOKEN}",
                        leeway=settings.assertion_leeway_seconds,
                    ),
                ),
                (
                    policy_pb2_grpc.add_PolicyServiceServicer_to_server,
                    PolicyServicer(
                        authority,
                        changes,
                        self._users,
                        lambda: self._catalog.names,
                        self._memberships.of,
                    ),
                ),
                (
                    membership_pb2_grpc.add_MembershipServiceServicer_to_server,
                    MembershipServicer(authority, self._memberships, subjects),
                ),
                (
                    deid_pb2_grpc.add_DeidServiceServicer_to_server,
                    DeidServicer(authority, self._surrogates, audit_channels.get),
                ),
                (
                    quota_pb2_grpc.add_QuotaServiceServicer_to_server,
                    QuotaServicer(
                        authority,
                        quotas,
                        subjects,
                        policy.quotas_of,
                        self._memberships.of,
                    ),
                ),
                (
                    factor_pb2_grpc.add_FactorServiceServicer_to_server,
                    FactorServicer(
                        authority,
                        factors,
                        self._users,
                        self._store,
                        keys,
                        fresh_seconds=settings.step_up_seconds,
                    ),
                ),
                (
                    access_pb2_grpc.add_AccessServiceServicer_to_server,
                    AccessServicer(
                        authority,
                        self._grants,
                        self._store,
                        log,
                        break_glass_seconds=settings.break_glass_seconds,
                        alarm=metrics.glass_broken,
                    ),
                ),
                (
                    destruction_pb2_grpc.add_DestructionServiceServicer_to_server,
                    DestructionServicer(authority, keys_channels.get),
                ),
                (
                    review_pb2_grpc.add_AccessReviewServiceServicer_to_server,
                    AccessReviewServicer(
                        authority,
                        changes,
                        self._users,
                        self._clients,
                        self._grants,
                        self._memberships.of,
                        lambda: self._catalog.names,
                        audit_channels.get,
                    ),
                ),
                (
                    gateway_pb2_grpc.add_LogServiceServicer_to_server,
                    LogServicer(authority, audit_channels.get),
                ),
                (
                    add_HolderServiceServicer_to_server,
                    HolderServicer(
                        Holders(self._sealer, self._factor_store, self._surrogates), keys_channels
                    ),
                ),
            ],
            fronts=[self._front],
            around=self._recorder,
        )
        self.address = self._server.address
        self._guard = StreamGuard(self._server, authority.still, self._recorder.cut)
        self._catching_up = threading.Thread(
            target=self._every,
            args=(_CATCH_UP_SECONDS, self._offboarding.catch_up),
            name="certificates-due",
            daemon=True,
        )
        self._ticker = threading.Thread(
            target=self._every,
            args=(_TICK_SECONDS, self._end_late),
            name="time-limits",
            daemon=True,
        )
        self._summaries = threading.Thread(
            target=self._every,
            args=(_SUMMARY_SECONDS, self._recorder.summarise),
            name="denied-summary",
            daemon=True,
        )

    def start(self) -> None:
        """Wait for what is needed, then serve; raise StartupError naming what did not come."""
        settings = self._ctx.settings
        self._ctx.revocations.on_destruction(self._ring.recheck)
        if settings.bootstrap_file is not None and self._users.bootstrap(settings.bootstrap_file):
            self._ctx.log.info("users.bootstrap", path=str(settings.bootstrap_file))
        self._ticker.start()
        self._summaries.start()
        self._catching_up.start()
        self._store.on_end(self._guard.look)
        self._guard.start()
        self._to_audit.start()
        self._to_inference.start()
        self._store.start()
        self._catalog.start()
        self._await_dependencies(time.monotonic() + settings.start_seconds)
        self._pipeline.start()
        self._server.start()
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def stop(self, grace: float) -> None:
        """Let calls in flight end, then release everything."""
        self._guard.stop()
        self._server.drain(grace)
        self._pipeline.stop()
        self._to_inference.stop()
        self._to_audit.stop()
        self._catalog.stop()
        self._stop.set()
        self._store.stop()
        self._ring.close()
        self._passwords.close()
        self._users.close()
        self._lockouts.close()
        self._clients.close()
        self._identities.close()
        self._policies.close()
        self._grants.close()
        self._memberships.close()
        self._surrogates.close()
        self._factor_store.close()
        for channels in self._all_channels:
            channels.close()

    def _await_dependencies(self, deadline: float) -> None:
        missing = {"audit", "inference", "sessions", "keys"}
        unchecked = self._remote_store
        while not self._ctx.stop.is_set():
            if unchecked is not None and unchecked.check(self._pool):
                unchecked = None
            try:
                if "sessions" not in self._ctx.health.missing:
                    self._sealer.prepare()
                    self._ctx.health.set("keys", ready=True)
            except SealwardError:
                pass  # told below, by the name of the part that is missing
            missing &= set(self._ctx.health.missing)
            if not missing and unchecked is None:
                return
            if time.monotonic() >= deadline:
                raise StartupError(f"waited in vain for {', '.join(sorted(missing))}")
            self._stop.wait(_TICK_SECONDS)

    def _warm_up(self) -> None:
        """Load the sealing library before the first login, but not before the first answer."""
        with contextlib.suppress(SealwardError):
            self._sealer.seal(b"", "warm-up")

    def _sessions_are(self, ready: bool) -> None:
        if not ready:
            self._sealer.recheck()
        self._ctx.health.set("sessions", ready=ready)

    def _channels(self, service: str, address: str) -> Channels:
        if not address:
            raise StartupError(f"SEALWARD_GATEWAY_{service.upper()}_ADDRESS is not set")
        return Channels(self._ctx.credentials, address, self._ctx.server_name(service))

    def _end_late(self) -> None:
        now = time.monotonic()
        self._inference.tick(now)
        self._audit.tick(now)

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._stop.wait(seconds):
            try:
                work()
            except Exception as error:  # noqa: BLE001 - it has to go on
                self._ctx.log.error("internal", error_type=type(error).__name__, where=where(error))


def _session_pool(
    ctx: ServiceContext[GatewaySettings],
) -> tuple[redis.ConnectionPool, StoreTls | None]:
    settings = ctx.settings
    remote = settings.remote_store()
    if remote is None:
        return make_pool(settings.redis_url, _secret(settings.redis_password_file)), None
    tls = StoreTls(remote, ctx.credentials, ctx.log)
    # What is wrong with the files is told at once, whether the server is there or not.
    tls.context()
    return make_pool(settings.redis_url, remote=connection_options(remote, tls)), tls


def _relying(settings: GatewaySettings) -> RelyingParty | None:
    if not settings.webauthn_rp_id:
        return None
    named = [origin.strip() for origin in settings.webauthn_origins.split(",") if origin.strip()]
    origins = named or [f"https://{settings.webauthn_rp_id}"]
    if not all(origin.startswith("https://") for origin in origins):
        raise StartupError("webauthn_origins are https://HOST or https://HOST:PORT")
    return RelyingParty(settings.webauthn_rp_id, origins)


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError:
        raise StartupError("the session store's password file cannot be read") from None
