"""Runs a service: settings, hardening, certificate, build, serve, drain.

Whatever is missing or broken stops the start with one line on standard error and exit status 1.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from sealward import __version__
from sealward.kit.channel import Channels
from sealward.kit.context import App, ServiceContext
from sealward.kit.enroll import private_folder
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.hardening import harden
from sealward.kit.health import Health
from sealward.kit.identity import PeerReader
from sealward.kit.logging import get_logger, silence_foreign, where
from sealward.kit.metrics import (
    MetricsListener,
    ServerMetrics,
    health_metrics,
    process_metrics,
    revocation_metrics,
)
from sealward.kit.oldtls import refuse_old_tls
from sealward.kit.renewal import Certificates, JoinedMachine, LocalEnrolment, RevokedError
from sealward.kit.revocation import Revocations
from sealward.kit.revocation_watch import RevocationWatch
from sealward.kit.settings import S, load
from sealward.kit.tls import Credentials
from sealward.kit.trustwatch import TrustWatch

_AGAIN_SECONDS = 1.0


def run(
    service: str,
    settings_type: type[S],
    build: Callable[[ServiceContext[S]], App],
    *,
    own_certificate: bool = False,
) -> int:
    """Run a service until SIGTERM or SIGINT; return the exit status.

    `own_certificate`: build() installs the credentials itself (the keys service, which signs its
    own, and keeps the list of revoked certificates); all others enrol before they are built.
    """
    log = get_logger(service)
    silence_foreign(log)
    try:
        harden()
        settings = load(settings_type, service)
        private_folder(settings.data_dir)
        ctx = _context(service, settings, log)
        if own_certificate:
            return _serve(ctx, build, None)
        certificates = _certificates(ctx)
        ctx.credentials.install(certificates.first(settings.start_seconds))
        return _serve(ctx, build, certificates)
    except StartupError as error:
        return _refuse(log, str(error))
    except SealwardError as error:
        return _refuse(log, f"{error.reason.name}: {error.message}")
    except Exception as error:  # noqa: BLE001 - its text may quote a secret: only its type is told
        return _refuse(log, f"unexpected {type(error).__name__} at {where(error)}")


def _refuse(log: Any, reason: str) -> int:
    log.critical("start.refused", reason=reason)
    print(f"error: {reason}", file=sys.stderr)  # noqa: T201
    return 1


def _context(service: str, settings: S, log: Any) -> ServiceContext[S]:
    registry = CollectorRegistry()
    health = Health()
    process_metrics(registry, service, __version__)
    # Keys has the list itself: it is never stale there.
    follows = service != "keys"
    revocations = Revocations(settings.revocation_seconds) if follows else Revocations()
    revocation_metrics(registry, revocations, follows=follows)
    health_metrics(registry, health)
    return ServiceContext(
        name=service,
        settings=settings,
        log=log,
        credentials=Credentials(),
        health=health,
        metrics=registry,
        server_metrics=ServerMetrics(registry),
        peers=PeerReader(settings.trust_domain, revocations),
    )


def _certificates(ctx: ServiceContext[Any]) -> Certificates:
    settings, prefix = ctx.settings, f"SEALWARD_{ctx.name.upper()}_"
    if settings.identity_dir is not None:
        return JoinedMachine(
            settings.identity_dir, ctx.name, ctx.credentials, settings.keys_address
        )
    if settings.enroll_dir is None:
        raise StartupError(
            f"neither {prefix}ENROLL_DIR (on the machine of the keys service) nor "
            f"{prefix}IDENTITY_DIR (on another one) is set"
        )
    return LocalEnrolment(settings.enroll_dir, ctx.name)


def _serve(
    ctx: ServiceContext[Any], build: Callable[[Any], App], certificates: Certificates | None
) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ctx.stop.set())
    watch = None
    if certificates is not None:
        watch = _watch(ctx)
        # From the start: an authority is not replaced past somebody who starts.
        _follow(ctx)
    app = build(ctx)
    metrics = MetricsListener(
        ctx.metrics, ctx.credentials, ctx.settings.metrics_address, ctx.revocations
    )
    try:
        if watch is not None and not watch.wait(ctx.settings.start_seconds):
            if watch.refused:
                raise StartupError("the certificate was revoked: join again")
            raise StartupError(
                f"no answer from the keys service in {ctx.settings.start_seconds:.0f} s: "
                "is it running?"
            )
        app.start()
        refuse_old_tls(app.address)
        metrics.start()
        if certificates is not None:
            threading.Thread(
                target=_renew, args=(ctx, certificates), name="renew", daemon=True
            ).start()
        _settle_collector()
        ctx.health.set("process", ready=True)
        ctx.log.info("started", address=app.address, metrics=metrics.address, transport="grpcio")
        ctx.stop.wait()
    finally:
        ctx.health.drain()
        app.stop(ctx.settings.drain_seconds)
        if watch is not None:
            watch.stop()
    metrics.stop()
    if ctx.failure:
        return _refuse(ctx.log, ctx.failure)
    ctx.log.info("stopped")
    return 0


def _settle_collector() -> None:
    """Take what was made at start out of the garbage collector's rounds, and make these rarer.

    A call leaves no cycles behind; walking the modules and tables again and again for the few that
    control paths leave costs calls their time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _watch(ctx: ServiceContext[Any]) -> RevocationWatch:
    """Begin to follow the list of revoked certificates."""
    settings = ctx.settings
    if not settings.keys_address:
        raise StartupError(f"SEALWARD_{ctx.name.upper()}_KEYS_ADDRESS is not set")
    watch = RevocationWatch(
        Channels(ctx.credentials, settings.keys_address, ctx.server_name("keys")),
        ctx.revocations,
        ctx.log,
        on_state=lambda confirmed: ctx.health.set("revocations", ready=confirmed),
        on_refused=ctx.renew.set,
    )
    # Our own certificate may be the one: a new one, of a new key, is had at once.
    ctx.revocations.on_change(
        lambda: ctx.renew.set() if ctx.credentials.material.serial in ctx.revocations else None
    )
    watch.start()
    return watch


def _renew(ctx: ServiceContext[Any], certificates: Certificates) -> None:
    """Renew at half-life; at the end of the certificate's life stop: never serve on."""
    while not ctx.stop.is_set():
        material = ctx.credentials.material
        ctx.renew.wait(max(1.0, material.half_life - time.time()))
        ctx.renew.clear()
        if ctx.stop.is_set():
            return
        try:
            left = max(1.0, material.not_after - time.time())
            ctx.credentials.install(certificates.again(min(left, ctx.settings.start_seconds)))
            ctx.log.info("certificate.renewed", not_after=ctx.credentials.material.not_after)
        except RevokedError as error:
            ctx.fail(str(error))
            return
        except StartupError:
            ctx.log.error("certificate.renewal-failed")
            if material.serial in ctx.revocations and not ctx.stop.wait(_AGAIN_SECONDS):
                ctx.renew.set()
            if time.time() >= material.not_after:
                ctx.fail("the certificate expired and could not be renewed")
                return


def _follow(ctx: ServiceContext[Any]) -> None:
    """Follow the trust bundle of the keys service."""
    channels = Channels(ctx.credentials, ctx.settings.keys_address, ctx.server_name("keys"))
    TrustWatch(
        channels,
        ctx.credentials,
        ctx.renew.set,
        ctx.stop,
        ctx.log,
        every=ctx.settings.trust_seconds,
    ).start()


def data_path(settings: Any, *parts: str) -> Path:
    """A path below the service's data folder."""
    return Path(settings.data_dir, *parts)
