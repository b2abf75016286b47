"""WebAuthn (W3C Web Authentication Level 2) as a second factor: options and responses. Pure.

Responses are checked by the library `webauthn`; what it keeps count of is compared in `keys.py`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST = 16 << 10
"""Characters that a response may have."""
# COSE algorithms that browsers' authenticators have: ES256, EdDSA, RS256 (RFC 9053, RFC 8812).
_ALGORITHMS = (-7, -8, -257)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]{1,2048}")


class WebauthnError(Exception):
    """A response that is refused, or is none. It says no more: a library's words stay inside."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A new credential: its id (base64url), public key (COSE) and signature counter."""

    credential_id: str
    public_key: bytes
    sign_count: int


class RelyingParty:
    """`rp_id` is the domain that credentials are for, `origins` are the pages that may use them."""

    def __init__(self, rp_id: str, origins: Sequence[str], name: str = "Sealward") -> None:
        self.rp_id = rp_id
        self._origins = list(origins)
        self._name = name

    def registration_options(
        self, user_id: str, user: str, challenge: bytes, seconds: float, existing: Iterable[str]
    ) -> str:
        """Return PublicKeyCredentialCreationOptions as JSON; `existing` credentials are left out.

        User verification is required, attestation is not asked for.
        """
        import webauthn
        from webauthn.helpers import structs
        from webauthn.helpers.cose import COSEAlgorithmIdentifier

        options = webauthn.generate_registration_options(
            rp_id=self.rp_id,
            rp_name=self._name,
            user_name=user,
            user_id=user_id.encode(),
            challenge=challenge,
            timeout=int(seconds * 1000),
            authenticator_selection=structs.AuthenticatorSelectionCriteria(
                user_verification=structs.UserVerificationRequirement.REQUIRED
            ),
            exclude_credentials=_described(existing),
            supported_pub_key_algs=[COSEAlgorithmIdentifier(number) for number in _ALGORITHMS],
        )
        return str(webauthn.options_to_json(options))

    def assertion_options(self, challenge: bytes, seconds: float, existing: Iterable[str]) -> str:
        """Return PublicKeyCredentialRequestOptions as JSON, for one of the `existing`."""
        import webauthn
        from webauthn.helpers import structs

        options = webauthn.generate_authentication_options(
            rp_id=self.rp_id,
            challenge=challenge,
            timeout=int(seconds * 1000),
            allow_credentials=_described(existing),
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        )
        return str(webauthn.options_to_json(options))

    def registered(self, response: str, challenge: bytes) -> Registered:
        """Check a RegistrationResponseJSON; raise WebauthnError."""
        import webauthn
        from webauthn.helpers.cose import COSEAlgorithmIdentifier

        try:
            done = webauthn.verify_registration_response(
                credential=response,
                expected_challenge=challenge,
                expected_rp_id=self.rp_id,
                expected_origin=self._origins,
                require_user_verification=True,
                supported_pub_key_algs=[COSEAlgorithmIdentifier(number) for number in _ALGORITHMS],
            )
        except Exception:  # noqa: BLE001 - the parsers below raise what they like; all is a refusal
            raise WebauthnError from None
        return Registered(text(done.credential_id), done.credential_public_key, done.sign_count)

    def asserted(self, response: str, challenge: bytes, public_key: bytes) -> int:
        """Check an AuthenticationResponseJSON; return its counter; raise WebauthnError.

        Whether the counter went on is for the caller to see: a regress is no wrong answer but a
        sign of a copied key (section 6.1.1).
        """
        import webauthn

        try:
            done = webauthn.verify_authentication_response(
                credential=response,
                expected_challenge=challenge,
                expected_rp_id=self.rp_id,
                expected_origin=self._origins,
                credential_public_key=public_key,
                credential_current_sign_count=0,
                require_user_verification=True,
            )
        except Exception:  # noqa: BLE001 - as above
            raise WebauthnError from None
        return int(done.new_sign_count)


def named(response: str) -> tuple[str, str]:
    """Return the credential id and the challenge (both base64url) that a response says it is of.

    Nothing is checked by that; raises WebauthnError for what is no response.
    """
    if len(response) > LARGEST:
        raise WebauthnError
    try:
        value: Any = json.loads(response)
        client_data = json.loads(_bytes(value["response"]["clientDataJSON"]))
        found = (value["id"], client_data["challenge"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WebauthnError from None
    if not all(isinstance(part, str) and _BASE64URL.fullmatch(part) for part in found):
        raise WebauthnError
    return found


def text(data: bytes) -> str:
    """Return base64url without padding, as WebAuthn writes bytes in JSON."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(value: str) -> bytes:
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def _described(credentials: Iterable[str]) -> list[Any]:
    from webauthn.helpers import structs

    return [structs.PublicKeyCredentialDescriptor(id=_bytes(name)) for name in credentials]
