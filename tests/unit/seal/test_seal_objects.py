"""Sealed objects: what opens, and everything that must not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from aws_encryption_sdk.exceptions import MasterKeyProviderError
from aws_encryption_sdk.identifiers import Algorithm, CommitmentPolicy
from aws_encryption_sdk.internal.formatting import serialize

from sealward.seal import esdk
from sealward.seal.context import KEY_SCHEMA, OBJECT_SCHEMA, EncryptionContext
from sealward.seal.errors import ContextError, SealBrokenError
from sealward.seal.esdk import MAX_FRAME_BYTES
from sealward.seal.objects import FRAME_BYTES, ObjectSealer, open_object, seal_object
from tests.support.esdk import FORBID, REQUIRE, sdk_open, sdk_seal

KEY = bytes(range(32))
CONTEXT = EncryptionContext("default", "model", "breast-cancer@1")
PAIRS = dict(CONTEXT.pairs(OBJECT_SCHEMA))
SIZES = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 300_000]


@pytest.mark.parametrize("size", SIZES)
def test_opens_what_it_sealed(size: int) -> None:
    plaintext = os.urandom(size)
    sealed = seal_object(KEY, CONTEXT, plaintext)
    assert open_object(KEY, CONTEXT, sealed) == plaintext
    assert size < 16 or plaintext not in sealed


def test_is_version_2_suite_0478() -> None:
    assert seal_object(KEY, CONTEXT, b"plain")[:3] == b"\x02\x04\x78"


@pytest.mark.parametrize("size", SIZES)
def test_the_sdk_opens_it(size: int) -> None:
    plaintext = os.urandom(size)
    opened, header = sdk_open(KEY, seal_object(KEY, CONTEXT, plaintext))
    assert opened == plaintext
    assert header.encryption_context == {
        "tenant": "default",
        "purpose": "model",
        "resource": "breast-cancer@1",
        "schema": "sealward/object/v1",
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", [128, 4096, FRAME_BYTES, MAX_FRAME_BYTES])
def test_what_the_sdk_sealed_opens(size: int, frame: int) -> None:
    plaintext = os.urandom(size if frame > 128 else min(size, 1024))
    assert open_object(KEY, CONTEXT, sdk_seal(KEY, PAIRS, plaintext, frame=frame)) == plaintext


def test_it_is_the_same_as_the_sdk_makes() -> None:
    """Same sizes, same fixed bytes; only ids, IV, keys and tags are drawn anew."""
    ours, theirs = seal_object(KEY, CONTEXT, bytes(70_000)), sdk_seal(KEY, PAIRS, bytes(70_000))
    assert len(ours) == len(theirs)
    context = ours.index(b"\x00\x04\x00\x07purpose")
    assert ours[35:context] == theirs[35:context]
    assert ours[context:].partition(b"branch")[0] == theirs[context:].partition(b"branch")[0]


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


@pytest.mark.parametrize(
    "pairs",
    [
        {**PAIRS, "extra": "1"},
        {k: v for k, v in PAIRS.items() if k != "tenant"},
        {**PAIRS, "tenant": ""},
        {},
    ],
)
def test_a_context_with_more_or_less_in_it_is_refused(pairs: dict[str, str]) -> None:
    sealed = sdk_seal(KEY, pairs, b"plain")
    assert sdk_open(KEY, sealed)[0] == b"plain"
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


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
    ("suite", "policy"),
    [
        # Not committing: one ciphertext could be made for two keys. 0x0178, 0x0078, 0x0378.
        (Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA256, FORBID),
        (Algorithm.AES_256_GCM_IV12_TAG16, FORBID),
        (Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA384_ECDSA_P384, FORBID),
        # Committing, but another suite than ours. 0x0578.
        (Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384, REQUIRE),
    ],
)
def test_another_suite_is_refused(suite: Any, policy: Any) -> None:
    sealed = sdk_seal(KEY, PAIRS, b"plain", suite=suite, policy=policy)
    assert sdk_open(KEY, sealed, policy=CommitmentPolicy.REQUIRE_ENCRYPT_ALLOW_DECRYPT)
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


@pytest.mark.parametrize("suite", [b"\x01\x78", b"\x00\x78", b"\x05\x78", b"\x03\x78"])
def test_a_downgraded_header_is_refused(suite: bytes) -> None:
    sealed = seal_object(KEY, CONTEXT, b"plain")
    for start in (b"\x02" + suite, b"\x01\x80" + suite, b"\x01" + suite):
        with pytest.raises(SealBrokenError):
            open_object(KEY, CONTEXT, start + sealed[3:])


@pytest.mark.parametrize("frame", [0, MAX_FRAME_BYTES + 128])
def test_an_unframed_message_and_frames_too_large_are_refused(frame: int) -> None:
    sealed = sdk_seal(KEY, PAIRS, b"plain", frame=frame)
    assert sdk_open(KEY, sealed)[0] == b"plain"
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


@pytest.mark.parametrize("keys", [2, 100])
def test_more_than_one_data_key_is_refused(keys: int) -> None:
    sealed = sdk_seal(KEY, PAIRS, b"plain", others=keys - 1)
    opened, header = sdk_open(KEY, sealed)
    assert (opened, len(header.encrypted_data_keys)) == (b"plain", keys)
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


def test_the_commitment_counts_though_the_header_is_authentic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever holds the data key can authenticate any header, so the tag is not enough."""
    derive = esdk._derive
    monkeypatch.setattr(esdk, "_derive", lambda *parts: (derive(*parts)[0], bytes(32)))
    sealed = seal_object(KEY, CONTEXT, b"plain")
    assert open_object(KEY, CONTEXT, sealed) == b"plain"
    monkeypatch.undo()
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)
    with pytest.raises(MasterKeyProviderError, match="commitment"):
        sdk_open(KEY, sealed)


def test_a_frame_has_the_iv_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialize, "frame_iv", lambda _suite, number: bytes(8) + b"%04d" % number)
    sealed = sdk_seal(KEY, PAIRS, b"plain")
    assert sdk_open(KEY, sealed)[0] == b"plain"
    with pytest.raises(SealBrokenError):
        open_object(KEY, CONTEXT, sealed)


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


FRAME = 16 + FRAME_BYTES + 16


def parts(sealed: bytes) -> tuple[bytes, list[bytes]]:
    """A message's header, and its frames."""
    head = ObjectSealer(KEY).header_size(CONTEXT)
    body = sealed[head:]
    return sealed[:head], [body[at : at + FRAME] for at in range(0, len(body), FRAME)]


def test_frames_cannot_be_dropped_swapped_or_taken_from_elsewhere() -> None:
    text = bytes(FRAME_BYTES) + b"\x01" * FRAME_BYTES + b"end"
    head, (first, second, last) = parts(seal_object(KEY, CONTEXT, text))
    _, foreign = parts(seal_object(KEY, CONTEXT, text))
    assert open_object(KEY, CONTEXT, head + first + second + last) == text
    for frames in (
        (second, first, last),
        (first, last),
        (first, first, last),
        (first, second),
        (first, second, second),
        (first, second, last, last),
        (last,),
        (foreign[0], second, last),
        (first, second, foreign[2]),
        (),
    ):
        with pytest.raises(SealBrokenError):
            open_object(KEY, CONTEXT, head + b"".join(frames))


@pytest.mark.parametrize("size", [2 * FRAME_BYTES, 2 * FRAME_BYTES + 5])
def test_a_message_cut_at_a_frame_is_refused(size: int) -> None:
    sealed = seal_object(KEY, CONTEXT, bytes(size))
    head = ObjectSealer(KEY).header_size(CONTEXT)
    for frames in range(3):
        for away in (-1, 0, 1, 40):
            with pytest.raises(SealBrokenError):
                open_object(KEY, CONTEXT, sealed[: head + frames * FRAME + away][: len(sealed) - 1])


def test_bytes_after_the_message_are_refused() -> None:
    sealed = seal_object(KEY, CONTEXT, b"plain")
    for tail in (b"\x00", sealed):
        with pytest.raises(SealBrokenError):
            open_object(KEY, CONTEXT, sealed + tail)


def test_no_error_or_repr_shows_anything() -> None:
    for sealed in (b"patient 4711", seal_object(KEY, CONTEXT, b"patient 4711")[:-1] + b"\x00"):
        with pytest.raises(SealBrokenError) as caught:
            open_object(KEY, CONTEXT, sealed)
        assert str(caught.value) == "a sealed object does not open"
        assert caught.value.__context__ is None or caught.value.__suppress_context__
    sealer = ObjectSealer(KEY)
    assert repr(sealer) == "ObjectSealer()"
    assert repr(sealer.begin(CONTEXT)) == "Message()"


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
    """It is a file format: no AWS service is asked, and no AWS library is loaded."""
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
assert not {"boto3", "botocore", "aws_encryption_sdk"} & set(sys.modules)
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
