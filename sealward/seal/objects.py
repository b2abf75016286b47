"""Sealed objects: AWS Encryption SDK messages, format version 2, algorithm suite 0x0478.

AES-256-GCM with HKDF-SHA512 and key commitment, one data key a message, wrapped by raw AES-GCM
under a branch key; frames of 64 KiB. The format is published and read by implementations in seven
languages; it is a file format here, and no AWS service is called. See
https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/message-format.html.

Importing this module takes a third of a second (the library brings an AWS client that is not used).
"""

from __future__ import annotations

import io
from typing import Any

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import (
    Algorithm,
    CommitmentPolicy,
    ContentType,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKey

from sealward.seal.context import OBJECT_SCHEMA, EncryptionContext
from sealward.seal.errors import SealBrokenError

KEY_BYTES = 32
FRAME_BYTES = 64 * 1024
PROVIDER_ID = "sealward"
BRANCH_KEY_NAME = "branch"

_SUITE: Any = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY


class ObjectSealer:
    """Seals and opens objects under one 32-byte key. Thread-safe; costs far less reused than made.

    `key_name` stands in each message in clear and must be the same on opening.
    """

    def __init__(
        self, key: bytes, *, key_name: str = BRANCH_KEY_NAME, schema: str = OBJECT_SCHEMA
    ) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._schema = schema
        self._client: Any = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT,
            max_encrypted_data_keys=1,
        )
        self._provider: Any = RawMasterKey(
            key_id=key_name.encode(),
            provider_id=PROVIDER_ID,
            wrapping_key=WrappingKey(
                wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
                wrapping_key=key,
                wrapping_key_type=EncryptionKeyType.SYMMETRIC,
            ),
        )

    def seal(self, context: EncryptionContext, plaintext: bytes) -> bytes:
        """Seal bytes for a context. Adds some 400 bytes and 32 a frame."""
        sealed, _ = self._client.encrypt(
            source=plaintext,
            key_provider=self._provider,
            encryption_context=dict(context.pairs(self._schema)),
            algorithm=_SUITE,
            frame_length=FRAME_BYTES,
        )
        return bytes(sealed)

    def open(self, context: EncryptionContext, sealed: bytes) -> bytes:
        """Open bytes sealed for exactly this context; nothing is returned before all is verified.

        Raises SealBrokenError for everything else: another key or context, another suite (also a
        committing one), an unframed message, more than one data key, any change, any bytes after
        the message.
        """
        source = io.BytesIO(sealed)
        try:
            with self._client.stream(
                mode="d", source=source, key_provider=self._provider
            ) as stream:
                header = stream.header
                plaintext = bytes(stream.read())
            as_expected = (
                header.algorithm is _SUITE
                and header.content_type is ContentType.FRAMED_DATA
                and dict(header.encryption_context) == dict(context.pairs(self._schema))
                and not source.read(1)
            )
        except Exception:  # noqa: BLE001 - the parser of a hostile message may raise anything
            as_expected = False
        if not as_expected:
            raise SealBrokenError("a sealed object does not open") from None
        return plaintext

    def __repr__(self) -> str:
        return "ObjectSealer()"


def seal_object(key: bytes, context: EncryptionContext, plaintext: bytes) -> bytes:
    """Seal one object under a branch key (32 bytes)."""
    return ObjectSealer(key).seal(context, plaintext)


def open_object(key: bytes, context: EncryptionContext, sealed: bytes) -> bytes:
    """Open one object; raise SealBrokenError."""
    return ObjectSealer(key).open(context, sealed)
