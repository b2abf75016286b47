"""Recovery codes: for whoever lost the device. Each is worth one login.

A code has 80 random bits, so a plain SHA-256 of it can be kept: there is nothing to guess.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

COUNT = 10
_BYTES = 10
_FORM = re.compile(r"[a-z2-7]{4}(-?[a-z2-7]{4}){3}")


def new_codes() -> list[str]:
    """Draw codes, in groups of four: `abcd-efgh-ijkl-mnop`."""
    return [_grouped(base64.b32encode(secrets.token_bytes(_BYTES)).decode().lower())
            for _ in range(COUNT)]  # fmt: skip


def is_code(text: str) -> bool:
    """Whether a text has the form of a recovery code; dashes and case do not matter."""
    return _FORM.fullmatch(text.strip().lower()) is not None


def mark(code: str) -> str:
    """Return what is kept of a code: its SHA-256, hexadecimal."""
    return hashlib.sha256(code.strip().lower().replace("-", "").encode()).hexdigest()


def _grouped(code: str) -> str:
    return "-".join(code[at : at + 4] for at in range(0, len(code), 4))
