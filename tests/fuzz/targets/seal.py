"""Sealed things: whatever was changed of them does not open."""

from __future__ import annotations

import random
from functools import cache
from unittest.mock import patch

from sealward.seal.context import EncryptionContext
from sealward.seal.entries import PREFIX_BYTES, EntryOpener, EntrySealer, segment_of
from sealward.seal.errors import SealBrokenError, UnlockError
from sealward.seal.header import key_name_of
from sealward.seal.objects import ObjectSealer
from sealward.seal.rootkey import UnlockSecret, new_identity
from tests.fuzz.harness import target

_CONTEXT = EncryptionContext("default", "job", "j-1")
_PLAIN = b"plain text " * 20
_SEGMENT, _PREFIX = b"segment!", b"\x01".ljust(PREFIX_BYTES, b"p")


@cache
def _sealer() -> ObjectSealer:
    return ObjectSealer(bytes(range(32)), key_name="branch")


@cache
def _object(plain: bytes = _PLAIN) -> bytes:
    # Random for nobody else: the same seed in every run.
    with patch("os.urandom", random.Random(1).randbytes):  # noqa: S311
        return _sealer().seal(_CONTEXT, plain)


@target(SealBrokenError, seeds=lambda: [_object()])
def sealed_header(data: bytes) -> None:
    """What a sealed object says in clear."""
    assert key_name_of(data).isascii()


@target(SealBrokenError, seeds=lambda: [_object(), _object(b"")])
def sealed_object(data: bytes) -> None:
    """A sealed object: opens to what was sealed, or not at all."""
    assert _sealer().open(_CONTEXT, data) in (_PLAIN, b"")


@cache
def _entry() -> bytes:
    with patch("os.urandom", random.Random(1).randbytes):  # noqa: S311
        return EntrySealer(bytes(range(32)), _SEGMENT, "origin").seal(_PREFIX, _PLAIN)


@target(SealBrokenError, seeds=lambda: [_entry()])
def sealed_entry(data: bytes) -> None:
    """A sealed entry: as above."""
    assert len(segment_of(data)) == 8
    assert EntryOpener(bytes(range(32)), _SEGMENT, "origin").open(_PREFIX, data) == _PLAIN


@cache
def _unlock() -> tuple[UnlockSecret, bytes]:
    secret = UnlockSecret(new_identity())
    return secret, secret.seal(bytes(32))


@target(UnlockError, seeds=lambda: [_unlock()[1]])
def root_key_file(data: bytes) -> None:
    """The root key's age file."""
    secret, _ = _unlock()
    assert secret.open(data) == bytes(32)


@target(UnlockError, seeds=lambda: [new_identity().encode(), b"a pass phrase that is long enough"])
def unlock_secret(data: bytes) -> None:
    """The text of an unlock secret."""
    UnlockSecret(data.decode("utf-8", "replace"))
