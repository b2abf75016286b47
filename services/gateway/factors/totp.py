"""One-time passwords by time: TOTP (RFC 6238) with SHA-1, six digits, thirty seconds.

These are the parameters that every authenticator app knows. The clock is passed in.
"""

from __future__ import annotations

import hmac
import re

import pyotp

PERIOD = 30
"""Seconds of a step."""
DRIFT = 1
"""Steps that the clocks may be apart (RFC 6238 section 5.2)."""

_CODE = re.compile(r"[0-9]{6}")


def new_secret() -> str:
    """Draw a secret: 160 bits as base32 (RFC 4226 section 4, R6)."""
    return pyotp.random_base32(32)


def uri(secret: str, user: str, issuer: str) -> str:
    """Return the secret as an otpauth URI, which authenticator apps read from a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=user, issuer_name=issuer)


def matching_step(secret: str, code: str, now: float, last: int) -> int | None:
    """Return the step that a code is of, None for a wrong one.

    A code is worth one use (RFC 6238 section 5.2): steps up to `last` count no more. Every step is
    compared, so the time taken says nothing.
    """
    if not _CODE.fullmatch(code):
        return None
    present = int(now) // PERIOD
    made = pyotp.TOTP(secret)
    found = None
    for step in range(present - DRIFT, present + DRIFT + 1):
        right = hmac.compare_digest(made.generate_otp(step), code)
        if right and step > last and found is None:
            found = step
    return found
