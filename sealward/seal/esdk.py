"""Messages of the AWS Encryption SDK: format version 2, suite 0x0478, one raw AES-GCM wrapped key.

    message  = header || header tag[16] || frame* || final frame
    header   = 02 || 04 78 || message id[32] || context || data key || 02 (framed)
               || frame length[4] || commitment[32]
    context  = length[2] || count[2] || (length[2] || text)*, names and values sorted by name
    data key = 00 01 || "sealward" and, each after its length[2], key name || tag bits[4] = 128
               || IV length[4] = 12 || IV[12], and wrapped key[32] || tag[16]
    frame    = number[4] || IV[12] || ciphertext[frame length] || tag[16]
    final    = ff ff ff ff || number[4] || IV[12] || length[4] || ciphertext || tag[16]

    message key = HKDF-SHA512(data key, salt message id, info 04 78 || "DERIVEKEY", 32 bytes)
    commitment  = HKDF-SHA512(data key, salt message id, info "COMMITKEY", 32 bytes)
    IV of a frame = its number, from 1; of the header tag = 0
    AAD of a frame = message id || name of its kind || number[4] || length[8]

All is AES-256-GCM. Who opens a message knows the context and the name of the key that it must have,
so a header has one length and its fixed parts one value: they are compared, not parsed, and every
other header is refused: another suite or version, more data keys, one context pair more or less.

https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/message-format.html
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from sealward.seal.errors import SealBrokenError

KEY_BYTES = 32
TAG_BYTES = 16
PROVIDER_ID = b"sealward"
# Before the ciphertext of a frame, and of the final one.
FRAME_HEAD = 16
FINAL_HEAD = 24
# We write frames of 64 KiB; others write larger ones. A frame is held in memory whole.
MAX_FRAME_BYTES = 1 << 20
MAX_FRAMES = (1 << 32) - 2

Buffer = bytes | bytearray | memoryview

_SUITE = b"\x04\x78"
_START = b"\x02" + _SUITE
_FRAMED = b"\x02"
_ID_BYTES = 32
_IV_BYTES = 12
_COMMITMENT_BYTES = 32
_WRAPPED_BYTES = KEY_BYTES + TAG_BYTES
_FINAL = b"\xff\xff\xff\xff"
_REGULAR_KIND = b"AWSKMSEncryptionClient Frame"
_FINAL_KIND = b"AWSKMSEncryptionClient Final Frame"
_HASH = hashes.SHA512()


class Message:
    """One message whose header is written or verified: seals or opens its frames.

    `size` is that of the header with its tag: the frames begin there.
    """

    __slots__ = ("_cipher", "_final", "_regular", "frame_bytes", "header", "size")

    def __init__(self, header: bytes, message_id: bytes, cipher: AESGCM, frame_bytes: int) -> None:
        self.header = header
        self.size = len(header)
        self.frame_bytes = frame_bytes
        self._cipher = cipher
        self._regular = message_id + _REGULAR_KIND
        self._final = message_id + _FINAL_KIND

    @property
    def stride(self) -> int:
        """Bytes of a regular frame with its head and tag."""
        return FRAME_HEAD + self.frame_bytes + TAG_BYTES

    def final_size(self, plaintext: int) -> int:
        """Bytes of a final frame that holds so many."""
        return FINAL_HEAD + plaintext + TAG_BYTES

    def frames_in(self, body: int) -> tuple[int, int]:
        """Return how many regular frames a body of so many bytes has, and what its final one holds.

        There is one answer for each size; raises SealBrokenError where there is none.
        """
        frames, rest = divmod(body - FINAL_HEAD - TAG_BYTES, self.stride)
        if not (0 <= frames < MAX_FRAMES and rest <= self.frame_bytes):
            raise broken()
        return frames, rest

    def seal_frame(self, number: int, plaintext: Buffer, out: memoryview) -> int:
        """Write a regular frame (`frame_bytes` of plaintext) into `out`; return its size."""
        ends = self.stride
        counted = number.to_bytes(4, "big")
        iv = bytes(8) + counted
        out[:FRAME_HEAD] = counted + iv
        about = self._regular + counted + self.frame_bytes.to_bytes(8, "big")
        self._cipher.encrypt_into(iv, plaintext, about, out[FRAME_HEAD:ends])
        return ends

    def seal_final(self, number: int, plaintext: Buffer, out: memoryview) -> int:
        """Write the final frame (at most `frame_bytes` of plaintext); return its size."""
        length = len(plaintext)
        ends = self.final_size(length)
        counted = number.to_bytes(4, "big")
        iv = bytes(8) + counted
        out[:FINAL_HEAD] = _FINAL + counted + iv + length.to_bytes(4, "big")
        about = self._final + counted + length.to_bytes(8, "big")
        self._cipher.encrypt_into(iv, plaintext, about, out[FINAL_HEAD:ends])
        return ends

    def open_frame(self, number: int, frame: memoryview, out: memoryview) -> None:
        """Verify a regular frame (`stride` bytes) into `out`; raise SealBrokenError."""
        counted = number.to_bytes(4, "big")
        iv = bytes(8) + counted
        if frame[:FRAME_HEAD] != counted + iv:
            raise broken()
        about = self._regular + counted + self.frame_bytes.to_bytes(8, "big")
        self._open(iv, frame[FRAME_HEAD:], about, out)

    def open_final(self, number: int, frame: memoryview, out: memoryview) -> int:
        """Verify the final frame, from its head to the message's end, into `out`.

        Returns how many bytes it holds; raises SealBrokenError, also for bytes behind it.
        """
        length = len(frame) - FINAL_HEAD - TAG_BYTES
        if not 0 <= length <= self.frame_bytes:
            raise broken()
        counted = number.to_bytes(4, "big")
        iv = bytes(8) + counted
        if frame[:FINAL_HEAD] != _FINAL + counted + iv + length.to_bytes(4, "big"):
            raise broken()
        about = self._final + counted + length.to_bytes(8, "big")
        self._open(iv, frame[FINAL_HEAD:], about, out[:length])
        return length

    def _open(self, iv: bytes, sealed: memoryview, about: bytes, out: memoryview) -> None:
        try:
            self._cipher.decrypt_into(iv, sealed, about, out)
        except InvalidTag:
            raise broken() from None

    def __repr__(self) -> str:
        return "Message()"


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fixed parts of a header, and where they end."""

    context: bytes
    middle: bytes

    @property
    def size(self) -> int:
        return len(_START) + _ID_BYTES + len(self.middle) + _IV_BYTES + _TAIL_BYTES


# Length and wrapped key, content type, frame length, commitment, tag.
_TAIL_BYTES = 2 + _WRAPPED_BYTES + 1 + 4 + _COMMITMENT_BYTES + TAG_BYTES


class Wrapper:
    """Writes and reads headers under one wrapping key, 32 bytes, with a name. Thread-safe."""

    def __init__(self, key: bytes, name: str) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._cipher = AESGCM(key)
        info = name.encode() + (8 * TAG_BYTES).to_bytes(4, "big") + _IV_BYTES.to_bytes(4, "big")
        self._key = (
            b"\x00\x01" + _counted(PROVIDER_ID) + (len(info) + _IV_BYTES).to_bytes(2, "big") + info
        )

    def header_size(self, context: Mapping[str, str]) -> int:
        """Bytes of every header for this context, its tag included."""
        return self._shape(context).size

    def write(self, context: Mapping[str, str], frame_bytes: int) -> Message:
        """Begin a message with a new data key."""
        shape = self._shape(context)
        data_key, message_id, iv = os.urandom(KEY_BYTES), os.urandom(_ID_BYTES), os.urandom(12)
        cipher, commitment = _derive(data_key, message_id)
        wrapped = self._cipher.encrypt(iv, data_key, shape.context)
        header = b"".join(
            (
                _START, message_id, shape.middle, iv, _counted(wrapped), _FRAMED,
                frame_bytes.to_bytes(4, "big"), commitment,
            )
        )  # fmt: skip
        tag = cipher.encrypt(bytes(_IV_BYTES), b"", header)
        return Message(header + tag, message_id, cipher, frame_bytes)

    def read(self, context: Mapping[str, str], sealed: Buffer) -> Message:
        """Verify the header that `sealed` begins with; raise SealBrokenError."""
        shape = self._shape(context)
        header = bytes(sealed[: shape.size])
        if len(header) != shape.size:
            raise broken()
        start, rest = header[: len(_START)], header[len(_START) :]
        message_id, rest = rest[:_ID_BYTES], rest[_ID_BYTES:]
        middle, rest = rest[: len(shape.middle)], rest[len(shape.middle) :]
        iv, length, rest = rest[:_IV_BYTES], rest[12:14], rest[14:]
        wrapped, kind, rest = rest[:_WRAPPED_BYTES], rest[48:49], rest[49:]
        frame_bytes = int.from_bytes(rest[:4], "big")
        if (
            (start, middle, kind) != (_START, shape.middle, _FRAMED)
            or length != _WRAPPED_BYTES.to_bytes(2, "big")
            or not 0 < frame_bytes <= MAX_FRAME_BYTES
        ):
            raise broken()
        try:
            data_key = self._cipher.decrypt(iv, wrapped, shape.context)
            cipher, commitment = _derive(data_key, message_id)
            # Before the derived key is used: a message opens under one data key only.
            if not hmac.compare_digest(commitment, rest[4:-TAG_BYTES]):
                raise broken()
            cipher.decrypt(bytes(_IV_BYTES), rest[-TAG_BYTES:], header[:-TAG_BYTES])
        except InvalidTag:
            raise broken() from None
        return Message(header, message_id, cipher, frame_bytes)

    def _shape(self, context: Mapping[str, str]) -> _Shape:
        pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
        text = len(pairs).to_bytes(2, "big") + b"".join(
            _counted(name) + _counted(value) for name, value in pairs
        )
        return _Shape(text, _counted(text) + self._key)

    def __repr__(self) -> str:
        return "Wrapper()"


def _derive(data_key: bytes, message_id: bytes) -> tuple[AESGCM, bytes]:
    """Return the cipher of a message and the commitment to its data key."""
    pseudorandom = HKDF.extract(_HASH, message_id, data_key)
    message_key = HKDFExpand(_HASH, KEY_BYTES, _SUITE + b"DERIVEKEY").derive(pseudorandom)
    commitment = HKDFExpand(_HASH, _COMMITMENT_BYTES, b"COMMITKEY").derive(pseudorandom)
    return AESGCM(message_key), commitment


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def broken() -> SealBrokenError:
    """The one error for everything that does not open."""
    return SealBrokenError("a sealed object does not open")
