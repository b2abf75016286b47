"""A security key in software, and the browser around it, on the structures of Yubico's fido2.

It makes what a real one makes: authenticator data, attestation objects and signatures are encoded
by a library that the product does not use.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.cose import ES256
from fido2.utils import websafe_decode, websafe_encode
from fido2.webauthn import (
    Aaguid,
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
)

ORIGIN = "https://login.hospital.example"
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40
_SAME_EACH_TIME = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


@dataclass
class Authenticator:
    """One credential. `counter` goes up with each signature; 0 stays 0 for `counts=False`."""

    counts: bool = True
    counter: int = 0
    origin: str = ORIGIN
    flags: int = PRESENT | VERIFIED
    rp_id: str = ""
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def create(self, options_json: str, **changes: Any) -> str:
        """navigator.credentials.create: RegistrationResponseJSON. `changes` spoil client data."""
        options = json.loads(options_json)
        data = AttestedCredentialData.create(Aaguid.NONE, self.credential_id, _cose(self.key))
        rp_id = self.rp_id or options["rp"]["id"]
        auth_data = AuthenticatorData.create(
            sha256(rp_id.encode()).digest(), self.flags | ATTESTED, self._count(), data
        )
        client = self._client("webauthn.create", options["challenge"], changes)
        return self._json(
            {
                "clientDataJSON": websafe_encode(client),
                "attestationObject": websafe_encode(
                    bytes(AttestationObject.create("none", auth_data, {}))
                ),
            }
        )

    def get(self, options_json: str, **changes: Any) -> str:
        """navigator.credentials.get: AuthenticationResponseJSON."""
        options = json.loads(options_json)
        assert websafe_encode(self.credential_id) in {
            known["id"] for known in options["allowCredentials"]
        }
        rp_id = self.rp_id or options["rpId"]
        auth_data = AuthenticatorData.create(
            sha256(rp_id.encode()).digest(), self.flags, self._count()
        )
        client = self._client("webauthn.get", options["challenge"], changes)
        signed = bytes(auth_data) + sha256(client).digest()
        return self._json(
            {
                "clientDataJSON": websafe_encode(client),
                "authenticatorData": websafe_encode(bytes(auth_data)),
                "signature": websafe_encode(self.key.sign(signed, _SAME_EACH_TIME)),
            }
        )

    def _count(self) -> int:
        self.counter += int(self.counts)
        return self.counter

    def _client(self, kind: str, challenge: str, changes: dict[str, Any]) -> bytes:
        made = CollectedClientData.create(
            type=kind, challenge=websafe_decode(challenge), origin=self.origin
        )
        return json.dumps({**json.loads(bytes(made)), **changes}).encode()

    def _json(self, response: dict[str, str]) -> str:
        name = websafe_encode(self.credential_id)
        return json.dumps({"id": name, "rawId": name, "type": "public-key", "response": response})


def _cose(key: ec.EllipticCurvePrivateKey) -> ES256:
    made: Any = ES256
    found: ES256 = made.from_cryptography_key(key.public_key())
    return found
