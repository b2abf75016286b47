"""The name of the key that a sealed object tells in clear."""

from __future__ import annotations

import io
import secrets

import pytest
from aws_encryption_sdk.internal.formatting import deserialize

from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.header import key_name_of
from sealward.seal.objects import ObjectSealer

CONTEXT = EncryptionContext("default", "session", "epoch-1")


def sealed(name: str, context: EncryptionContext = CONTEXT) -> bytes:
    return ObjectSealer(secrets.token_bytes(32), key_name=name).seal(context, b"plain")


@pytest.mark.parametrize("name", ["k", "kek/default/session/12", "x" * 300])
@pytest.mark.parametrize("resource", ["e", "r" * 192])
def test_the_name_is_what_the_library_reads(name: str, resource: str) -> None:
    message = sealed(name, CONTEXT.about(resource))
    assert key_name_of(message) == name
    header, _ = deserialize.deserialize_header(io.BytesIO(message))
    (wrapped,) = header.encrypted_data_keys
    assert wrapped.key_provider.key_info.startswith(name.encode())


def test_what_is_no_sealed_object_is_refused() -> None:
    message = sealed("name")
    for length in range(message.index(b"name") + 4):
        with pytest.raises(SealBrokenError):
            key_name_of(message[:length])
    for other in (
        b"",
        b"vault:v1:AAAA",
        bytes(400),
        b"\x01" + message[1:],
        message.replace(b"sealward", b"selaward"),
        message.replace(b"name", b"n\xffme"),
    ):
        with pytest.raises(SealBrokenError):
            key_name_of(other)
