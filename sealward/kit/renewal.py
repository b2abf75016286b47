"""Where a service has its certificate from, at its start and again at half-life.

On the machine of the keys service: from the enrolment folder, with a key that never leaves memory.
On another machine: from the folder that `sealward certs join` made, renewed over the wire with the
certificate that it holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from sealward.api.keys.v1 import keys_pb2
from sealward.api.keys.v1.keys_pb2_grpc import KeysServiceStub
from sealward.kit.channel import OPTIONS
from sealward.kit.enroll import enroll
from sealward.kit.errors import StartupError
from sealward.kit.identity import Identity, peer_from_certificate
from sealward.kit.joining import IdentityFolder
from sealward.kit.reasons import Reason
from sealward.kit.status import reason_of
from sealward.kit.tls import Credentials, Material, key_to_pem, load_material, make_csr, new_key


class Certificates(Protocol):
    """Where certificates come from. Methods raise StartupError."""

    def first(self, timeout: float) -> Material:
        """Return what to start with."""

    def again(self, timeout: float) -> Material:
        """Make a new key and have it certified within `timeout` seconds."""


class RevokedError(StartupError):
    """The certificate in use was revoked, and nobody but a person can change that."""


class LocalEnrolment:
    """Certificates by the folder that the keys service of this machine watches."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def first(self, timeout: float) -> Material:
        """Enrol; a service keeps no certificate over its restart."""
        return enroll(self._folder, self._name, timeout)

    again = first


class JoinedMachine:
    """Certificates by the folder of a machine that joined."""

    def __init__(
        self, folder: Path, name: str, credentials: Credentials, keys_address: str
    ) -> None:
        self._files = IdentityFolder(folder)
        self._folder = folder
        self._name = name
        self._credentials = credentials
        self._keys_address = keys_address

    def first(self, timeout: float) -> Material:  # noqa: ARG002
        """Read the folder; its certificate has to be this service's own."""
        material = self._files.load()
        identity = _identity(material)
        if identity.role != f"service/{self._name}":
            raise StartupError(
                f"{self._folder} holds a certificate of {identity.uri}, not of service/{self._name}"
            )
        return material

    def again(self, timeout: float) -> Material:
        """Ask keys, as who we are, and keep the answer; raise RevokedError when it will not."""
        key = new_key()
        request = keys_pb2.IssueCertificateRequest(
            csr=make_csr(key, self._name).public_bytes(Encoding.DER)
        )
        domain = _identity(self._credentials.material).trust_domain
        name = ("grpc.ssl_target_name_override", f"keys.{domain}")
        credentials = self._credentials.channel()
        try:
            with grpc.secure_channel(self._keys_address, credentials, [*OPTIONS, name]) as channel:
                answer = KeysServiceStub(channel).IssueCertificate(
                    request, timeout=timeout, wait_for_ready=True
                )
        except grpc.RpcError as error:
            call: Any = error
            if reason_of(call) is Reason.CERTIFICATE_REVOKED:
                raise RevokedError("the certificate was revoked: join again") from None
            raise StartupError("the keys service does not renew the certificate") from None
        renewed = load_material(
            key_to_pem(key),
            answer.certificate_pem.encode("ascii"),
            answer.bundle_pem.encode("ascii"),
        )
        try:
            self._files.save(renewed)
        except OSError:
            raise StartupError(f"{self._folder} cannot be written") from None
        return renewed


def _identity(material: Material) -> Identity:
    return peer_from_certificate(material.chain_pem, "").identity
