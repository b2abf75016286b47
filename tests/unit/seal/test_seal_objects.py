"""Sealed objects: what opens, and everything that must not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import aws_encryption_sdk
import pytest
from aws_encryption_sdk.identifiers import (
    Algorithm,
    CommitmentPolicy,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKey, RawMasterKeyProvider

from sealward.seal.context import KEY_SCHEMA, OBJECT_SCHEMA, EncryptionContext
from sealward.seal.errors import ContextError, SealBrokenError
from sealward.seal.objects import (
    BRANCH_KEY_NAME,
    FRAME_BYTES,
    PROVIDER_ID,
    ObjectSealer,
    open_object,
    seal_object,
)

KEY = bytes(range(32))
CONTEXT = EncryptionContext("default", "model", "breast-cancer@1")


def master_key(key: bytes = KEY, name: str = BRANCH_KEY_NAME) -> Any:
    return RawMasterKey(
        key_id=name.encode(),
        provider_id=PROVIDER_ID,
        wrapping_key=WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=key,
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        ),
    )


def foreign_message(
    algorithm: Any, policy: Any, *, context: dict[str, str] | None = None, frame: int = FRAME_BYTES
) -> bytes:
    """A message made by the library itself, around our rules."""
    client = aws_encryption_sdk.EncryptionSDKClient(commitment_policy=policy)
    sealed, _ = client.encrypt(
        source=b"plain",
        key_provider=master_key(),
        encryption_context=dict(CONTEXT.pairs(OBJECT_SCHEMA)) if context is None else context,
        algorithm=algorithm,
        frame_length=frame,
    )
    return bytes(sealed)


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 300_000])
def test_opens_what_it_sealed(size: int) -> None:
    plaintext = os.urandom(size)
    sealed = seal_object(KEY, CONTEXT, plaintext)
    assert open_object(KEY, CONTEXT, sealed) == plaintext
    assert size < 16 or plaintext not in sealed


def test_is_version_2_suite_0478() -> None:
    assert seal_object(KEY, CONTEXT, b"plain")[:3] == b"\x02\x04\x78"


def test_the_library_alone_opens_it() -> None:
    client = aws_encryption_sdk.EncryptionSDKClient(
        commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    )
    plaintext, header = client.decrypt(
        source=seal_object(KEY, CONTEXT, b"plain"), key_provider=master_key()
    )
    assert plaintext == b"plain"
    assert header.encryption_context == {
        "tenant": "default",
        "purpose": "model",
        "resource": "breast-cancer@1",
        "schema": "sealward/object/v1",
    }


@pytest.mark.parametrize(
    "other",
    [
        EncryptionContext("other", "model", "breast-cancer@1"),
        EncryptionContext("default", "session", "breast-cancer@1"),
        EncryptionContext("default", "model", "breast-cancer@2"),
    ],
)
def test_another_context_is_refused(other: EncryptionContext) -> None:
    """Two objects under one key that change places do not open."""
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, seal_object(KEY, other, b"plain"))


def test_a_context_with_more_or_less_in_it_is_refused() -> None:
    strict = CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    suite = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
    pairs = dict(CONTEXT.pairs(OBJECT_SCHEMA))
    assert open_object(KEY, CONTEXT, foreign_message(suite, strict)) == b"plain"
    for wrong in ({**pairs, "extra": "1"}, {k: v for k, v in pairs.items() if k != "tenant"}):
        with pytest.raises(SealBrokenError):
            open_object(KEY, CONTEXT, foreign_message(suite, strict, context=wrong))


def test_another_key_is_refused() -> None:
    with pytest.raises(SealBrokenError):
        open_object(bytes(32), CONTEXT, seal_object(KEY, CONTEXT, b"plain"))


def test_a_sealed_key_is_not_a_sealed_object() -> None:
    sealed = ObjectSealer(KEY, schema=KEY_SCHEMA).seal(CONTEXT, b"plain")
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


def test_another_key_name_is_refused() -> None:
    sealed = ObjectSealer(KEY, key_name="kek/default/model/1").seal(CONTEXT, b"plain")
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [
        # Not committing: one ciphertext could be made for two keys.
        (
            Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA256,
            CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT,
        ),
        (Algorithm.AES_256_GCM_IV12_TAG16, CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT),
        # Committing, but another suite than ours.
        (
            Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384,
            CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT,
        ),
    ],
)
def test_another_suite_is_refused(algorithm: Any, policy: Any) -> None:
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, foreign_message(algorithm, policy))


def test_an_unframed_message_is_refused() -> None:
    sealed = foreign_message(
        Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
        CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT,
        frame=0,
    )
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


def test_two_data_keys_are_refused() -> None:
    class TwoKeys(RawMasterKeyProvider):  # type: ignore[misc]
        provider_id = PROVIDER_ID

        def _get_raw_key(self, key_id: bytes) -> Any:
            return master_key(KEY if key_id == b"branch" else bytes(32)).config.wrapping_key

    provider = TwoKeys()
    provider.add_master_key(b"branch")
    provider.add_master_key(b"second")
    client = aws_encryption_sdk.EncryptionSDKClient()
    sealed, header = client.encrypt(
        source=b"plain",
        key_provider=provider,
        encryption_context=dict(CONTEXT.pairs(OBJECT_SCHEMA)),
        algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
    )
    assert len(header.encrypted_data_keys) == 2
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, bytes(sealed))


def test_every_flipped_byte_is_refused() -> None:
    sealed = seal_object(KEY, CONTEXT, b"plain text of an object")
    sealer = ObjectSealer(KEY)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 0x01
        with pytest.raises(SealBrokenError):
            sealer.open(CONTEXT, bytes(changed))


def test_every_truncation_is_refused() -> None:
    sealed = seal_object(KEY, CONTEXT, b"plain")
    sealer = ObjectSealer(KEY)
    for length in range(len(sealed)):
        with pytest.raises(SealBrokenError):
            sealer.open(CONTEXT, sealed[:length])


def test_frames_cannot_be_dropped_or_swapped() -> None:
    sealed = seal_object(KEY, CONTEXT, bytes(FRAME_BYTES) + b"\x01" * FRAME_BYTES + b"end")
    frame = 4 + 12 + FRAME_BYTES + 16
    tail = 4 + 4 + 12 + 4 + 3 + 16
    head = len(sealed) - 2 * frame - tail
    first, second = sealed[head : head + frame], sealed[head + frame : head + 2 * frame]
    last = sealed[-tail:]
    assert open_object(KEY, CONTEXT, sealed[:head] + first + second + last)
    for body in (second + first + last, first + last, first + first + last, first + second):
        with pytest.raises(SealBrokenError):
            open_object(KEY, CONTEXT, sealed[:head] + body)


def test_bytes_after_the_message_are_refused() -> None:
    sealed = seal_object(KEY, CONTEXT, b"plain")
    for tail in (b"\x00", sealed):
        with pytest.raises(SealBrokenError):
            open_object(KEY, CONTEXT, sealed + tail)


def test_no_error_or_repr_shows_anything() -> None:
    with pytest.raises(SealBrokenError) as caught:
        open_object(KEY, CONTEXT, b"patient 4711")
    assert str(caught.value) == "a sealed object does not open"
    assert caught.value.__suppress_context__
    assert repr(ObjectSealer(KEY)) == "ObjectSealer()"


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_only_256_bit_keys(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ObjectSealer(bytes(size))


@pytest.mark.parametrize(
    ("tenant", "purpose", "resource", "named"),
    [
        ("", "model", "x", "tenant"),
        ("Default", "model", "x", "tenant"),
        ("default", "audit segment", "x", "purpose"),
        ("default", "model", "", "resource"),
        ("default", "model", "x\n", "resource"),
        ("default", "model", "x" * 193, "resource"),
        ("default", "model", "é", "resource"),
    ],
)
def test_a_wrong_context_names_its_part_and_not_its_value(
    tenant: str, purpose: str, resource: str, named: str
) -> None:
    with pytest.raises(ContextError) as caught:
        EncryptionContext(tenant, purpose, resource)
    assert str(caught.value) == f"{named} of the encryption context is not of its form"


def test_works_without_sockets_and_without_any_aws_setting() -> None:
    """The format's library brings an AWS client: nothing of it may be asked."""
    program = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise AssertionError(event)
sys.addaudithook(refuse)
from sealward.seal.context import EncryptionContext
from sealward.seal.objects import open_object, seal_object
context = EncryptionContext("default", "model", "x")
sealed = seal_object(bytes(32), context, b"plain")
assert open_object(bytes(32), context, sealed) == b"plain"
print("opened")
"""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "opened\n", done.stderr
