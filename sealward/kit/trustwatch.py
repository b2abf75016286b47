"""Follows the trust bundle while the process runs, and what keys wants of its certificate.

The keys service replaces its certificate authority only as fast as everybody follows, so each
service asks every few seconds and says what it has. A changed bundle goes into use at once: the
next handshake trusts it. A certificate that is not of the authority that signs is renewed, and so
is one that keys wants replaced. While keys does not answer everything stays as it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from hashlib import sha256

import grpc
import structlog

from sealward.api.keys.v1.keys_pb2 import GetTrustBundleRequest
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit.errors import StartupError
from sealward.kit.keysclient import ChannelSource
from sealward.kit.tls import Credentials, Material

_CALL_SECONDS = 5.0
# A renewal that did not help is asked for again no sooner.
_AGAIN_SECONDS = 30.0


class TrustWatch:
    """Asks every `every` seconds from a thread of its own; `renew` has the certificate renewed."""

    def __init__(
        self,
        channels: ChannelSource,
        credentials: Credentials,
        renew: Callable[[], None],
        stop: threading.Event,
        log: structlog.typing.FilteringBoundLogger,
        *,
        every: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channels = channels
        self._credentials = credentials
        self._renew = renew
        self._stop = stop
        self._log = log
        self._every = every
        self._clock = clock
        self._lost = False
        # For which certificate renewal was asked last, and when.
        self._asked: tuple[bytes, float] = (b"", 0.0)

    def start(self) -> None:
        """Follow from now on."""
        threading.Thread(target=self._run, name="trust-bundle", daemon=True).start()

    def ask(self) -> None:
        """Ask once, and follow."""
        material = self._credentials.material
        request = GetTrustBundleRequest(
            bundle_sha256=sha256(material.bundle_pem).digest(),
            certificate_current=material.current,
        )
        try:
            stub = KeysServiceStub(self._channels.get())
            answer = stub.GetTrustBundle(request, timeout=_CALL_SECONDS, wait_for_ready=True)
            bundle = answer.bundle_pem.encode("ascii")
            if bundle and bundle != material.bundle_pem:
                self._credentials.trust(bundle)
                self._log.info("trust-bundle.changed", count=bundle.count(b"BEGIN CERTIFICATE"))
        except (grpc.RpcError, ValueError, StartupError) as error:
            # ValueError: the channel was closed under us by a renewal.
            if not self._lost and not self._stop.is_set():
                self._lost = True
                self._log.warning("trust-bundle.lost", error_type=type(error).__name__)
            return
        self._lost = False
        self._judge(self._credentials.material, answer.renew_before)

    def _judge(self, material: Material, renew_before: int) -> None:
        if material.current and material.made >= renew_before:
            return
        before, at = self._asked
        if material.chain_pem == before and self._clock() < at + _AGAIN_SECONDS:
            return
        self._asked = (material.chain_pem, self._clock())
        self._renew()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.ask()
