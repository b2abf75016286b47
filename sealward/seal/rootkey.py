"""The root key file: an age file (https://age-encryption.org/v1), readable with any age tool.

The unlock secret is an X25519 identity (`AGE-SECRET-KEY-1…`; fast, for unattended starts) or a
passphrase (scrypt, about a second; for starts with a person at the keyboard).
"""

from __future__ import annotations

import pyrage

from sealward.seal.errors import UnlockError
from sealward.seal.secret import Secret

MIN_PASSPHRASE = 12
_IDENTITY = "AGE-SECRET-KEY-1"


class UnlockSecret:
    """What opens the root key. Its text never shows in repr, errors or logs."""

    file_name = "root.age"

    def __init__(self, text: str) -> None:
        """Take the content of a secret file: an age identity file, or one line of passphrase.

        Raises UnlockError when it is neither.
        """
        lines = [line.strip() for line in text.splitlines()]
        identities = [line for line in lines if line.startswith(_IDENTITY)]
        self._identity: pyrage.x25519.Identity | None = None
        self._passphrase = Secret(b"")
        if identities:
            if len(identities) > 1:
                raise UnlockError("the unlock secret holds more than one age identity")
            try:
                self._identity = pyrage.x25519.Identity.from_str(identities[0])
            except pyrage.IdentityError:
                raise UnlockError("the unlock secret is not a valid age identity") from None
            return
        passphrase = text.rstrip("\r\n")
        self._passphrase = Secret(passphrase.encode())
        if len(passphrase) < MIN_PASSPHRASE or len(passphrase.splitlines()) != 1:
            raise UnlockError(
                "the unlock secret must be an age identity (AGE-SECRET-KEY-1…) or one line of "
                f"passphrase with at least {MIN_PASSPHRASE} characters"
            )

    def seal(self, root: bytes) -> bytes:
        """Return the age file of a root key."""
        sealed: bytes = (
            pyrage.encrypt(root, [self._identity.to_public()])
            if self._identity is not None
            else pyrage.passphrase.encrypt(root, self._passphrase.reveal().decode())
        )
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """Return the root key; raise UnlockError: wrong secret, or the file was changed."""
        try:
            root: bytes = (
                pyrage.decrypt(sealed, [self._identity])
                if self._identity is not None
                else pyrage.passphrase.decrypt(sealed, self._passphrase.reveal().decode())
            )
        except pyrage.DecryptError as error:
            raise UnlockError("wrong unlock secret, or a damaged file", str(error)) from None
        return root

    def __repr__(self) -> str:
        return "UnlockSecret()"


def new_identity() -> str:
    """Make an X25519 identity: one line to keep in a file with mode 0600."""
    return str(pyrage.x25519.Identity.generate())
