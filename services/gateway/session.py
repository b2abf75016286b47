"""A session as a value: what it holds, how it is written, how tokens are made and named.

Nothing in here reads a clock or a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import asdict, dataclass

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

TOKEN_BYTES = 32
TOKEN_LENGTH = 43  # 32 bytes as base64url without padding
SPKI_BYTES = 32


@dataclass(frozen=True, slots=True)
class Session:
    """Who logged in, with which certificate key, and until when.

    `session_id` is public and not the token. `spki` is the SHA-256 of the certificate's public key
    (DER SPKI, 32 bytes). `created` and `expires` are seconds since the epoch. `generation` is the
    user's at login: it rises when all sessions of a user end. `break_glass` is the reason code of a
    session that was opened by breaking the glass, and `patient` then marks the one patient that it
    is for (emergency.py). `second_factor` is when a second factor was last proven, 0 for never.
    """

    session_id: str
    user_id: str
    user: str
    roles: tuple[str, ...]
    spki: bytes
    created: int
    expires: int
    generation: int = 0
    break_glass: str = ""
    patient: str = ""
    second_factor: int = 0

    def encode(self) -> bytes:
        """Write the session as JSON. The result is sealed before it leaves the process."""
        values = {**asdict(self), "roles": list(self.roles), "spki": self.spki.hex()}
        return json.dumps(values, separators=(",", ":"), sort_keys=True).encode()


def decode_session(data: bytes) -> Session:
    """Read what `encode` wrote; raise SEAL_BROKEN when it is anything else."""
    try:
        values = json.loads(data)
        session = Session(
            **{**values, "roles": tuple(values["roles"]), "spki": bytes.fromhex(values["spki"])}
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SealwardError(Reason.SEAL_BROKEN, "the stored session cannot be read") from None
    return session


def new_token() -> str:
    """Draw a bearer token: base64url of 32 random bytes."""
    return base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).rstrip(b"=").decode()


def new_session_id() -> str:
    """Draw a session's public id: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def token_hash(token: str) -> str:
    """Name a token in the store: hexadecimal SHA-256. The store never sees the token."""
    return hashlib.sha256(token.encode()).hexdigest()
