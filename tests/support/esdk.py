"""The AWS Encryption SDK for Python: judges our messages, and seals messages for us to open."""

from __future__ import annotations

from typing import Any

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import (
    Algorithm,
    CommitmentPolicy,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKey, RawMasterKeyProvider

from sealward.seal.esdk import PROVIDER_ID
from sealward.seal.objects import BRANCH_KEY_NAME, FRAME_BYTES

SUITE: Any = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
REQUIRE: Any = CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
FORBID: Any = CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT


class _Keys(RawMasterKeyProvider):  # type: ignore[misc]
    """The key by its name, and any number of others."""

    provider_id = PROVIDER_ID.decode()

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.keys: dict[bytes, bytes] = {}

    def _get_raw_key(self, key_id: bytes) -> Any:
        return _wrapping_key(self.keys[key_id])


def _wrapping_key(key: bytes) -> Any:
    return WrappingKey(
        wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
        wrapping_key=key,
        wrapping_key_type=EncryptionKeyType.SYMMETRIC,
    )


def _master_key(key: bytes, name: str) -> Any:
    return RawMasterKey(
        key_id=name.encode(), provider_id=PROVIDER_ID.decode(), wrapping_key=_wrapping_key(key)
    )


def sdk_seal(
    key: bytes,
    pairs: dict[str, str],
    plaintext: bytes,
    *,
    name: str = BRANCH_KEY_NAME,
    frame: int = FRAME_BYTES,
    suite: Any = SUITE,
    policy: Any = REQUIRE,
    others: int = 0,
) -> bytes:
    """Seal with the SDK; `others`: how many more data keys stand in the header."""
    provider = _Keys()
    provider.keys = {name.encode(): key}
    provider.keys |= {b"other-%d" % number: bytes([number]) * 32 for number in range(others)}
    for known in provider.keys:
        provider.add_master_key(known)
    client = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=policy)
    sealed, _ = client.encrypt(
        source=plaintext,
        key_provider=provider,
        encryption_context=pairs,
        algorithm=suite,
        frame_length=frame,
    )
    return bytes(sealed)


def sdk_open(
    key: bytes, sealed: bytes, *, name: str = BRANCH_KEY_NAME, policy: Any = REQUIRE
) -> tuple[bytes, Any]:
    """Open with the SDK alone; return plaintext and header."""
    client = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=policy)
    plaintext, header = client.decrypt(source=sealed, key_provider=_master_key(key, name))
    return bytes(plaintext), header
