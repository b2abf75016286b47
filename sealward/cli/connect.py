"""Channels of the command line: as the local administrator, or as a user of `clients/`."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from sealward.cli.certificates import ensure_admin
from sealward.cli.errors import CliError, Exit
from sealward.cli.suite import Suite
from sealward.kit.errors import StartupError
from sealward.kit.identity import peer_from_certificate
from sealward.kit.tls import Credentials, Material, load_material

CALL_SECONDS = 15.0

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(material: Material, address: str, server_name: str) -> grpc.Channel:
    """Open a channel with a certificate; `server_name` is the name that the other end must show."""
    return grpc.secure_channel(
        address,
        Credentials(material).channel(),
        [*_OPTIONS, ("grpc.ssl_target_name_override", server_name)],
    )


def trust_domain(material: Material) -> str:
    """Return the trust domain of a certificate's identity."""
    return peer_from_certificate(material.chain_pem, "").identity.trust_domain


class Admin:
    """Channels to the services with the local administrator's certificate.

    `domain` is the trust domain, `serial` the serial number (hex) of that certificate.
    """

    def __init__(self, suite: Suite, material: Material | None = None) -> None:
        self._suite = suite
        if material is None:
            suite.require_running()
            material = ensure_admin(suite)
        self.material = material
        self.domain = trust_domain(material)
        self.serial = f"{material.serial:x}"
        self._endpoints = suite.endpoints()

    def channel(self, service: str) -> grpc.Channel:
        """Open a channel to a service."""
        address = self._endpoints[service]["address"]
        return open_channel(self.material, address, f"{service}.{self.domain}")

    def tls(self, service: str) -> tuple[ssl.SSLContext, str]:
        """Return what a listener of a service that is not gRPC wants, and the name it shows."""
        context = Credentials(self.material).ssl_context(ssl.Purpose.SERVER_AUTH)
        return context, f"{service}.{self.domain}"


def user_folder(suite: Suite, user: str) -> Path:
    """Return a user's client folder; raise CliError when there is none."""
    folder = suite.clients / user
    if "/" in user or not (folder / "key.pem").is_file():
        raise CliError(
            f"there is no client folder for {user} in {suite.clients}",
            advice=f"sealward user add {user} --role ROLE",
            code=Exit.USAGE,
        )
    return folder


def user_material(suite: Suite, user: str) -> Material:
    """Read a user's certificate; raise CliError when it is missing, broken or expired."""
    folder = user_folder(suite, user)
    try:
        return load_material(
            (folder / "key.pem").read_bytes(),
            (folder / "cert.pem").read_bytes(),
            (folder / "ca.pem").read_bytes(),
        )
    except FileNotFoundError as error:
        raise CliError(f"{folder} has no {Path(error.filename).name}") from None
    except StartupError as error:
        raise CliError(
            f"{folder}: {error}", advice=f"sealward certs rotate --user {user}"
        ) from None


def user_channel(suite: Suite, user: str) -> grpc.Channel:
    """Open a channel to the gateway with a user's certificate."""
    suite.require_running()
    material = user_material(suite, user)
    return open_channel(material, suite.address("gateway"), f"gateway.{trust_domain(material)}")


def is_serving(channel: grpc.Channel, seconds: float = 1.0, service: str = "") -> bool:
    """Ask grpc.health.v1; False when not serving. Raise grpc.RpcError when there is no answer."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    answer = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=seconds
    )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def wait_serving(
    channel: grpc.Channel, stop: threading.Event, ready: Callable[[], None], poll: float = 0.02
) -> None:
    """Poll until the other end serves, then call `ready` once; return early when `stop` is set."""
    while not stop.is_set():
        with suppress(grpc.RpcError):
            if is_serving(channel):
                ready()
                return
        stop.wait(poll)


def current_account_owns(suite: Suite) -> bool:
    """True when this account owns the suite's folder."""
    try:
        return suite.root.stat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False
