"""Sealed audit entries: Tink AES-256-GCM ciphertexts with a key commitment beside them.

    sealed     = segment id[8] || commitment[32] || Tink ciphertext
    ciphertext = 0x01 || key id[4] = 1 || nonce[12] || AES-256-GCM ciphertext || tag[16]
    AAD        = prefix[49] || segment id[8] || origin of the log (UTF-8)
    key material = HKDF-SHA256(branch key, no salt, info "sealward/audit-entry/v1", 64 bytes)
                 = AES-256-GCM key[32] || commitment[32]

The prefix is the clear part of the leaf (version, event id, binding). AES-GCM alone does not commit
to its key: one ciphertext can be made to open under two keys to two stories. The commitment comes
from the same derivation as the key, so whoever shows another key for an entry has found a collision
of HKDF-SHA256. It is the same for all entries of a segment and tells nothing about the key.

Tink's wire format: https://developers.google.com/tink/wire-format (output prefix TINK).
"""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import tink
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from tink import aead, proto_keyset_format, secret_key_access
from tink.proto import aes_gcm_pb2, tink_pb2

from sealward.seal.errors import LeaseExpiredError, SealBrokenError

KEY_BYTES = 32
PREFIX_BYTES = 49
SEGMENT_ID_BYTES = 8
COMMITMENT_BYTES = 32
OVERHEAD_BYTES = SEGMENT_ID_BYTES + COMMITMENT_BYTES + 5 + 12 + 16
# Random 96-bit nonces: far below the 2^32 of NIST SP 800-38D, section 8.3.
MAX_ENTRIES = 1 << 20

_INFO = b"sealward/audit-entry/v1"
_TINK_KEY_ID = 1
_TINK_PREFIX = b"\x01" + _TINK_KEY_ID.to_bytes(4, "big")
_NONCE_BYTES = 12
_AES_GCM_KEY = "type.googleapis.com/google.crypto.tink.AesGcmKey"


def _primitive(key: bytes) -> Any:
    aead.register()
    keyset = tink_pb2.Keyset(
        primary_key_id=_TINK_KEY_ID,
        key=[
            tink_pb2.Keyset.Key(
                key_data=tink_pb2.KeyData(
                    type_url=_AES_GCM_KEY,
                    value=aes_gcm_pb2.AesGcmKey(key_value=key).SerializeToString(),
                    key_material_type=tink_pb2.KeyData.SYMMETRIC,
                ),
                status=tink_pb2.ENABLED,
                key_id=_TINK_KEY_ID,
                output_prefix_type=tink_pb2.TINK,
            )
        ],
    )
    handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(aead.Aead)


class _Segment:
    """What begins each entry of a segment and is bound to it, with the key in a cipher."""

    def __init__(
        self, branch_key: bytes, segment_id: bytes, origin: str, cipher: Callable[[bytes], Any]
    ) -> None:
        if len(branch_key) != KEY_BYTES or len(segment_id) != SEGMENT_ID_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, a segment id {SEGMENT_ID_BYTES}")
        material = HKDF(hashes.SHA256(), 2 * KEY_BYTES, salt=None, info=_INFO).derive(branch_key)
        self._aead = cipher(material[:KEY_BYTES])
        self._head = segment_id + material[KEY_BYTES:]
        self._bound = segment_id + origin.encode()

    def _associated_data(self, prefix: bytes) -> bytes:
        if len(prefix) != PREFIX_BYTES:
            raise ValueError(f"the clear part of a leaf has {PREFIX_BYTES} bytes")
        return prefix + self._bound

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class EntrySealer(_Segment):
    """Seals the entries of one segment. Thread-safe.

    Tink's own call costs four times the encryption, so its ciphertexts are put together here: five
    bytes of its prefix before what `cryptography` makes. They are opened with Tink (EntryOpener).

    `used` is how many entries the segment's key has sealed before: a segment that goes on after a
    restart passes its count, since the bound of 2^20 is on the key and not on this object.
    """

    def __init__(self, branch_key: bytes, segment_id: bytes, origin: str, *, used: int = 0) -> None:
        super().__init__(branch_key, segment_id, origin, AESGCM)
        self._lock = threading.Lock()
        self._left = MAX_ENTRIES - used

    @property
    def left(self) -> int:
        """How many entries may still be sealed under this key."""
        return self._left

    def seal(self, prefix: bytes, plaintext: bytes) -> bytes:
        """Seal one entry, `OVERHEAD_BYTES` longer; raise LeaseExpiredError after 2^20 entries."""
        return self.seal_all(((prefix, plaintext),))[0]

    def seal_all(self, entries: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """Seal (prefix, plaintext) pairs, all or none; raise as `seal`."""
        count = len(entries)
        with self._lock:
            if self._left < count:
                raise LeaseExpiredError("the segment key has sealed as many entries as it may")
            self._left -= count
        nonces = os.urandom(count * _NONCE_BYTES)
        bound, head, encrypt = self._bound, self._head + _TINK_PREFIX, self._aead.encrypt
        sealed = []
        at = 0
        for prefix, plaintext in entries:
            if len(prefix) != PREFIX_BYTES:
                raise ValueError(f"the clear part of a leaf has {PREFIX_BYTES} bytes")
            nonce = nonces[at : at + _NONCE_BYTES]
            at += _NONCE_BYTES
            sealed.append(head + nonce + encrypt(nonce, plaintext, prefix + bound))
        return sealed


class EntryOpener(_Segment):
    """Opens the entries of one segment. Thread-safe."""

    def __init__(self, branch_key: bytes, segment_id: bytes, origin: str) -> None:
        super().__init__(branch_key, segment_id, origin, _primitive)

    def open(self, prefix: bytes, sealed: bytes) -> bytes:
        """Open one entry under its clear part; raise SealBrokenError.

        The commitment is checked before anything is decrypted.
        """
        head = len(self._head)
        if len(prefix) == PREFIX_BYTES and hmac.compare_digest(sealed[:head], self._head):
            try:
                plaintext: bytes = self._aead.decrypt(sealed[head:], self._associated_data(prefix))
            except tink.TinkError:
                pass
            else:
                return plaintext
        raise SealBrokenError("a sealed entry does not open") from None


def segment_of(sealed: bytes) -> bytes:
    """Return the segment id of a sealed entry (8 bytes); raise SealBrokenError."""
    if len(sealed) < OVERHEAD_BYTES:
        raise SealBrokenError("a sealed entry is too short")
    return sealed[:SEGMENT_ID_BYTES]
