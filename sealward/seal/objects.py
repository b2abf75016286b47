"""Sealed objects: AWS Encryption SDK messages, format version 2, algorithm suite 0x0478.

AES-256-GCM with HKDF-SHA512 and key commitment, one data key a message, wrapped by raw AES-GCM
under a branch key; frames of 64 KiB. The format is published and read by implementations in seven
languages (`esdk.py` has the bytes); it is a file format here, and no AWS service is called.

Objects that do not fit in memory: `files.py`.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from sealward.seal.context import OBJECT_SCHEMA, EncryptionContext
from sealward.seal.esdk import KEY_BYTES, Buffer, Message, Wrapper

FRAME_BYTES = 64 * 1024
BRANCH_KEY_NAME = "branch"

__all__ = [
    "BRANCH_KEY_NAME",
    "FRAME_BYTES",
    "KEY_BYTES",
    "ObjectSealer",
    "open_object",
    "seal_object",
]


class ObjectSealer:
    """Seals and opens objects under one 32-byte key. Thread-safe.

    `key_name` stands in each message in clear and must be the same on opening.
    """

    def __init__(
        self, key: bytes, *, key_name: str = BRANCH_KEY_NAME, schema: str = OBJECT_SCHEMA
    ) -> None:
        self._wrapper = Wrapper(key, key_name)
        self._schema = schema

    def begin(self, context: EncryptionContext) -> Message:
        """Begin a message for a context, to be sealed frame by frame."""
        return self._wrapper.write(context.pairs(self._schema), FRAME_BYTES)

    def header_size(self, context: EncryptionContext) -> int:
        """Bytes of the header that a message for this context has."""
        return self._wrapper.header_size(context.pairs(self._schema))

    def read(self, context: EncryptionContext, sealed: Buffer) -> Message:
        """Verify the header of a message, to be opened frame by frame; raise SealBrokenError."""
        return self._wrapper.read(context.pairs(self._schema), sealed)

    def seal(self, context: EncryptionContext, plaintext: bytes) -> bytes:
        """Seal bytes for a context. Adds some 330 bytes and 32 a frame."""
        message = self.begin(context)
        frames, rest = divmod(len(plaintext), message.frame_bytes)
        size = message.size + frames * message.stride + message.final_size(rest)

        def fill(out: memoryview) -> None:
            out[: message.size] = message.header
            source, at = memoryview(plaintext), message.size
            for number in range(frames):
                step = number * message.frame_bytes
                frame = source[step : step + message.frame_bytes]
                at += message.seal_frame(number + 1, frame, out[at:])
            message.seal_final(frames + 1, source[frames * message.frame_bytes :], out[at:])

        return _filled(size, fill)

    def open(self, context: EncryptionContext, sealed: bytes) -> bytes:
        """Open bytes sealed for exactly this context; nothing is returned before all is verified.

        Raises SealBrokenError for everything else: another key or context, another suite (also a
        committing one), an unframed message, more than one data key, any change, any bytes after
        the message.
        """
        message = self.read(context, sealed)
        body = memoryview(sealed)[message.size :]
        frames, rest = message.frames_in(len(body))

        def fill(out: memoryview) -> None:
            step, stride = message.frame_bytes, message.stride
            for number in range(frames):
                frame = body[number * stride : (number + 1) * stride]
                message.open_frame(number + 1, frame, out[number * step : (number + 1) * step])
            message.open_final(frames + 1, body[frames * stride :], out[frames * step :])

        return _filled(frames * message.frame_bytes + rest, fill)

    def __repr__(self) -> str:
        return "ObjectSealer()"


def seal_object(key: bytes, context: EncryptionContext, plaintext: bytes) -> bytes:
    """Seal one object under a branch key (32 bytes)."""
    return ObjectSealer(key).seal(context, plaintext)


def open_object(key: bytes, context: EncryptionContext, sealed: bytes) -> bytes:
    """Open one object; raise SealBrokenError."""
    return ObjectSealer(key).open(context, sealed)


def _filled(size: int, fill: Callable[[memoryview], None]) -> bytes:
    """Return bytes of this size that `fill` has written in place.

    A buffer of BytesIO becomes the result without a copy, and a copy of a large object costs more
    than its cipher. When `fill` raises nothing of it is seen by anyone.
    """
    if not size:
        fill(memoryview(bytearray()))
        return b""
    made = io.BytesIO()
    made.seek(size - 1)
    made.write(b"\0")
    with made.getbuffer() as out:
        fill(out)
    return made.getvalue()
