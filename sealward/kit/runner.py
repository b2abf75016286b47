"""Runs a service: settings, hardening, certificate, build, serve, drain.

Whatever is missing or broken stops the start with one line on standard error and exit status 1.
"""

from __future__ import annotations

import gc
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from sealward import __version__
from sealward.kit.context import App, ServiceContext
from sealward.kit.enroll import enroll, private_folder
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.hardening import harden
from sealward.kit.health import Health
from sealward.kit.identity import PeerReader
from sealward.kit.logging import get_logger, silence_foreign, where
from sealward.kit.metrics import MetricsListener, ServerMetrics, process_metrics
from sealward.kit.settings import S, load, split_address
from sealward.kit.tls import Credentials


def run(
    service: str,
    settings_type: type[S],
    build: Callable[[ServiceContext[S]], App],
    *,
    own_certificate: bool = False,
) -> int:
    """Run a service until SIGTERM or SIGINT; return the exit status.

    `own_certificate`: build() installs the credentials itself (the keys service, which signs its
    own); all others enrol before they are built.
    """
    log = get_logger(service)
    silence_foreign(log)
    try:
        harden()
        settings = load(settings_type, service)
        private_folder(settings.data_dir)
        ctx = _context(service, settings, log)
        if not own_certificate:
            ctx.credentials.install(enroll(settings.enroll_dir, service, settings.start_seconds))
        return _serve(ctx, build, renew=not own_certificate)
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
    process_metrics(registry, service, __version__)
    return ServiceContext(
        name=service,
        settings=settings,
        log=log,
        credentials=Credentials(),
        health=Health(),
        metrics=registry,
        server_metrics=ServerMetrics(registry),
        peers=PeerReader(settings.trust_domain),
    )


def _serve(ctx: ServiceContext[Any], build: Callable[[Any], App], *, renew: bool) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ctx.stop.set())
    app = build(ctx)
    metrics = MetricsListener(ctx.metrics, ctx.credentials, ctx.settings.metrics_address)
    try:
        app.start()
        _refuse_old_tls(app.address)
        metrics.start()
        if renew:
            threading.Thread(target=_renew, args=(ctx,), name="renew", daemon=True).start()
        _settle_collector()
        ctx.health.set("process", ready=True)
        ctx.log.info("started", address=app.address, metrics=metrics.address, transport="grpcio")
        ctx.stop.wait()
    finally:
        ctx.health.drain()
        app.stop(ctx.settings.drain_seconds)
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


def _renew(ctx: ServiceContext[Any]) -> None:
    """Enrol anew at half-life; at the end of the certificate's life stop: never serve on."""
    while not ctx.stop.is_set():
        material = ctx.credentials.material
        if ctx.stop.wait(max(1.0, material.half_life - time.time())):
            return
        try:
            left = max(1.0, material.not_after - time.time())
            ctx.credentials.install(
                enroll(ctx.settings.enroll_dir, ctx.name, min(left, ctx.settings.start_seconds))
            )
            ctx.log.info("certificate.renewed", not_after=ctx.credentials.material.not_after)
        except StartupError:
            ctx.log.error("certificate.renewal-failed")
            if time.time() >= material.not_after:
                ctx.fail("the certificate expired and could not be renewed")
                return


def _refuse_old_tls(address: str) -> None:
    """Dial ourselves with TLS 1.2: the handshake has to fail."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(split_address(address), timeout=5) as plain,
            context.wrap_socket(plain),
        ):
            accepted = True
    except (ssl.SSLError, OSError):
        accepted = False
    if accepted:
        raise StartupError("the listener accepts TLS 1.2: refusing to serve")


def data_path(settings: Any, *parts: str) -> Path:
    """A path below the service's data folder."""
    return Path(settings.data_dir, *parts)
