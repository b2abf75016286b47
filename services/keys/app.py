"""Composition root of the keys service: the one place where its parts are made."""

from __future__ import annotations

import threading
import time

from sealward.api.common.v1.holder_pb2_grpc import add_HolderServiceServicer_to_server
from sealward.api.keys.v1.authority_pb2_grpc import add_AuthorityServiceServicer_to_server
from sealward.api.keys.v1.backup_pb2_grpc import add_BackupServiceServicer_to_server
from sealward.api.keys.v1.destruction_pb2_grpc import add_DestructionServiceServicer_to_server
from sealward.api.keys.v1.keys_pb2_grpc import add_KeysServiceServicer_to_server
from sealward.api.keys.v1.rotation_pb2_grpc import add_RotationServiceServicer_to_server
from sealward.api.keys.v1.trust_pb2_grpc import add_TrustServiceServicer_to_server
from sealward.api.keys.v1.witness_pb2_grpc import add_WitnessServiceServicer_to_server
from sealward.kit.channel import Channels
from sealward.kit.context import ServiceContext
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.exporter import SpoolExporter, otlp_sender
from sealward.kit.identity import Identity, parse_identity, spiffe_id
from sealward.kit.metrics import SpoolMetrics
from sealward.kit.reasons import Code
from sealward.kit.recorder import Recorder as SpoolRecorder
from sealward.kit.server import GrpcServer
from sealward.kit.spool import Spool
from sealward.kit.tls import Material, key_to_pem, load_material, make_csr, new_key
from sealward.seal.lease import Lease
from services.keys.auditor import AuditGuard
from services.keys.authorityservicer import AuthorityServicer
from services.keys.backup import (
    BackupLog,
    BackupMaker,
    BackupServicer,
    backup_metrics,
    read_recipients,
)
from services.keys.destroying import Destroyer, SteadyClock, destruction_metrics
from services.keys.destructions import FILE as DESTRUCTIONS
from services.keys.destructions import Destructions
from services.keys.destructionservicer import DestructionServicer
from services.keys.enrolment import EnrolmentFolder
from services.keys.holding import OwnHolder, OwnKeysServicer
from services.keys.joining import JoinListener, JoinTokens
from services.keys.profiles import Lives, profile_of
from services.keys.provider import Provider, open_provider
from services.keys.records import CallRecords, Recorder, RefusalLimit, about_actor
from services.keys.register import Register
from services.keys.revocations import Issuance, RevocationList
from services.keys.rotation import Confirmations, RotationServicer
from services.keys.servicer import KeysServicer
from services.keys.settings import KeysSettings
from services.keys.succession import FILE, Succession
from services.keys.trust import TrustServicer
from services.keys.watch import ProviderWatch, authority_metrics, provider_metrics, vault_metrics
from services.keys.witness.opening import open_witness
from services.keys.witness.servicer import WitnessServicer


class KeysApp:
    """The composed service (sealward.kit.context.App)."""

    def __init__(
        self,
        ctx: ServiceContext[KeysSettings],
        provider: Provider,
        watch: ProviderWatch,
        server: GrpcServer,
        enrolment: EnrolmentFolder,
        exporter: SpoolExporter,
        own: OwnCertificate,
        register: Register,
        revocations: RevocationList,
        succession: Succession,
        destroyer: Destroyer,
        joining: JoinListener | None,
    ) -> None:
        self._ctx = ctx
        self._provider = provider
        self._watch = watch
        self._joining = joining
        self._register = register
        self._revocations = revocations
        self._server = server
        self._enrolment = enrolment
        self._exporter = exporter
        self._own = own
        self._succession = succession
        self._destroyer = destroyer
        self.address = server.address

    def start(self) -> None:
        """Serve, then let the others enrol."""
        self._exporter.start()
        self._server.start()
        self._enrolment.start()
        self._own.start()
        if self._joining is not None:
            self._joining.start()
        self._provider.start(self._watch)
        self._succession.start()
        self._destroyer.start()

    def stop(self, grace: float) -> None:
        """Drain and close."""
        self._destroyer.stop()
        self._succession.stop()
        self._enrolment.stop()
        if self._joining is not None:
            self._joining.stop(1.0)
        self._revocations.close()
        self._server.drain(grace)
        self._exporter.stop()
        self._register.close()
        self._provider.close()


class OwnCertificate:
    """The keys service's own certificate, from its own authority, renewed at half-life."""

    def __init__(
        self,
        ctx: ServiceContext[KeysSettings],
        authority: Issuance,
        lives: Lives,
        recorder: Recorder,
    ) -> None:
        self._ctx = ctx
        self._authority = authority
        self._recorder = recorder
        self.identity: Identity = parse_identity(
            spiffe_id(ctx.settings.trust_domain, "service", "keys")
        )
        self._profile = profile_of(self.identity, lives)

    def renew(self) -> Material:
        """Make a key and a certificate and put them into use; raise SealwardError."""
        key = new_key()
        issued = self._authority.issue(self._profile, make_csr(key, "keys"))
        self._recorder.record(
            "keys.certificate",
            "ok",
            code=Code.OK.name,
            target=self.identity.uri,
            **about_actor(self.identity),
        )
        material = load_material(key_to_pem(key), issued.chain_pem, self._authority.bundle_pem)
        self._ctx.credentials.install(material)
        return material

    def followed(self) -> bool:
        """Whether the certificate in use is of who signs, and the bundle in use is what it is."""
        material = self._ctx.credentials.material
        return material.bundle_pem == self._authority.bundle_pem and material.current

    def start(self) -> None:
        """Renew from now on; at once when the own certificate was revoked."""
        self._ctx.revocations.on_change(self._check)
        threading.Thread(target=self._run, name="renew", daemon=True).start()

    def _check(self) -> None:
        if self._ctx.credentials.material.serial in self._ctx.revocations:
            self._ctx.renew.set()

    def _run(self) -> None:
        material = self._ctx.credentials.material
        due = material.half_life
        while True:
            self._ctx.renew.wait(max(1.0, due - time.time()))
            self._ctx.renew.clear()
            if self._ctx.stop.is_set():
                return
            try:
                material = self.renew()
                due = material.half_life
                self._ctx.log.info("certificate.renewed", not_after=material.not_after)
            except (SealwardError, StartupError):
                self._ctx.log.error("certificate.renewal-failed")
                if time.time() >= material.not_after:
                    self._ctx.fail("the certificate expired and could not be renewed")
                    return
                due = time.time() + 5.0


def build(ctx: ServiceContext[KeysSettings]) -> KeysApp:
    """Open the provider and compose the service; raise StartupError."""
    settings = ctx.settings
    lease = _lease(settings)
    if not settings.audit_address:
        raise StartupError("SEALWARD_KEYS_AUDIT_ADDRESS is not set")
    provider = open_provider(ctx)
    branches = provider.branches
    register = Register(settings.data_dir / "register.sqlite")
    revocations = RevocationList(register, branches, ctx.revocations)
    revocations.load()
    authority = Issuance(provider.authority, register, revocations)
    lives = Lives(settings.certificate_seconds, settings.user_certificate_seconds)

    spool = Spool(settings.data_dir / "spool.sqlite")
    SpoolMetrics(ctx.metrics, spool)
    recorder = SpoolRecorder(spool, "keys")
    if provider.created:
        recorder.record("keys.keystore-create", "ok", target=provider.deployment)
        ctx.log.info("keystore.created", kind=branches.name)
    witness = open_witness(
        settings.data_dir,
        branches,
        recorder,
        ctx.log,
        deployment=provider.deployment,
        trust_domain=settings.trust_domain,
        clock=lambda: int(time.time()),
    )
    recipients = read_recipients(settings.recovery_recipients_file)
    maker = None
    if provider.keystore is not None:
        maker = BackupMaker(provider.keystore, branches, register, recipients)
    backups = BackupLog(register, maker)
    if maker is not None:
        backup_metrics(ctx.metrics, backups)
    destructions = Destructions(settings.data_dir / DESTRUCTIONS, branches)
    if provider.keystore is not None:
        destructions.know(provider.keystore.halves.destroyed)
    confirmations = Confirmations()
    rotation = RotationServicer(branches, confirmations, recorder, destructions.destroyed)
    own = OwnCertificate(ctx, authority, lives, recorder)
    own.renew()
    succession = Succession(
        settings.data_dir / FILE,
        provider.authority,
        recorder,
        ctx.log,
        longest=max(lives.service, lives.user),
        settle=settings.ca_settle_seconds,
        every=settings.trust_seconds,
        changed=ctx.renew.set,
        followed=own.followed,
    )
    channels = Channels(ctx.credentials, settings.audit_address, ctx.server_name("audit"))
    guard = AuditGuard(channels)
    destroyer = Destroyer(
        destructions,
        branches,
        provider.keystore,
        confirmations,
        guard,
        recorder,
        ctx.log,
        clock=SteadyClock(),
        changed=revocations.nudge,
    )
    destruction_metrics(ctx.metrics, destructions)
    enrolment = EnrolmentFolder(
        settings.enroll_dir,
        settings.trust_domain,
        lambda: authority.bundle_pem,
        lambda identity, request: authority.issue(profile_of(identity, lives), request),
        recorder,
        ctx.log,
    )
    tokens = JoinTokens(
        register, authority, lives, settings.trust_domain, lambda: ctx.credentials.material
    )
    joining = JoinListener(ctx, tokens, recorder) if settings.join_address else None
    server = GrpcServer(
        ctx,
        servicers=[
            (
                add_KeysServiceServicer_to_server,
                KeysServicer(branches, authority, lease, lives, succession, destructions.destroyed),
            ),
            (add_WitnessServiceServicer_to_server, WitnessServicer(witness)),
            (add_RotationServiceServicer_to_server, rotation),
            (
                add_DestructionServiceServicer_to_server,
                DestructionServicer(
                    destructions,
                    branches,
                    guard,
                    register,
                    revocations,
                    recorder,
                    settings.destroy_wait_seconds,
                ),
            ),
            (add_BackupServiceServicer_to_server, BackupServicer(maker, backups, recorder)),
            (
                add_AuthorityServiceServicer_to_server,
                AuthorityServicer(provider.authority, succession),
            ),
            (
                add_HolderServiceServicer_to_server,
                OwnKeysServicer(
                    OwnHolder(witness, revocations, destructions), rotation, own.identity
                ),
            ),
            (
                add_TrustServiceServicer_to_server,
                TrustServicer(
                    register,
                    revocations,
                    tokens,
                    settings.trust_domain,
                    joining.address if joining else "",
                    lambda: destructions.count,
                ),
            ),
        ],
        around=CallRecords(recorder, RefusalLimit()),
        # Every process of the deployment follows the list of revoked certificates.
        streams=(settings.workers * 2 // 3, settings.workers // 4),
    )
    exporter = SpoolExporter(spool, otlp_sender(channels), ctx.log)
    provider_metrics(ctx.metrics, branches)
    authority_metrics(ctx.metrics, provider.authority)
    if provider.session is not None:
        vault_metrics(ctx.metrics, provider.session)
    watch = ProviderWatch(ctx.health, recorder, ctx.log)
    return KeysApp(
        ctx,
        provider,
        watch,
        server,
        enrolment,
        exporter,
        own,
        register,
        revocations,
        succession,
        destroyer,
        joining,
    )


def _lease(settings: KeysSettings) -> Lease:
    try:
        return Lease(
            settings.lease_soft_seconds,
            settings.lease_hard_seconds,
            settings.lease_max_messages,
            settings.lease_max_bytes,
        )
    except ValueError:
        raise StartupError(
            "SEALWARD_KEYS_LEASE_SOFT_SECONDS may not be above SEALWARD_KEYS_LEASE_HARD_SECONDS"
        ) from None
