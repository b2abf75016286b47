"""The root key file and its unlock secret."""

from __future__ import annotations

import pyrage
import pytest

from sealward.seal.errors import UnlockError
from sealward.seal.rootkey import UnlockSecret, new_identity

ROOT = bytes(range(32))
PASSPHRASE = "correct horse battery staple"


def test_identity() -> None:
    text = new_identity()
    sealed = UnlockSecret(text).seal(ROOT)
    assert sealed.startswith(b"age-encryption.org/v1\n-> X25519 ")
    assert UnlockSecret(f"# created: today\n# public key: x\n{text}\n").open(sealed) == ROOT
    assert pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(text)]) == ROOT


def test_passphrase() -> None:
    sealed = UnlockSecret(PASSPHRASE + "\n").seal(ROOT)
    assert sealed.startswith(b"age-encryption.org/v1\n-> scrypt ")
    assert UnlockSecret(PASSPHRASE).open(sealed) == ROOT
    for wrong in (PASSPHRASE + " ", new_identity()):
        with pytest.raises(UnlockError, match="wrong unlock secret"):
            UnlockSecret(wrong).open(sealed)


def test_another_identity_or_a_changed_file_is_refused() -> None:
    secret = UnlockSecret(new_identity())
    sealed = secret.seal(ROOT)
    with pytest.raises(UnlockError):
        UnlockSecret(new_identity()).open(sealed)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(UnlockError):
            secret.open(bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(UnlockError):
            secret.open(sealed[:length])


@pytest.mark.parametrize(
    "text",
    ["", "\n", "short", "elevenchars", "two lines of\npassphrase", "AGE-SECRET-KEY-1NONSENSE"],
)
def test_unusable_secrets(text: str) -> None:
    with pytest.raises(UnlockError) as caught:
        UnlockSecret(text)
    assert not text.strip() or text not in str(caught.value)


def test_two_identities_are_refused() -> None:
    with pytest.raises(UnlockError, match="more than one"):
        UnlockSecret(f"{new_identity()}\n{new_identity()}\n")


def test_repr_shows_nothing() -> None:
    assert repr(UnlockSecret(PASSPHRASE)) == "UnlockSecret()"
