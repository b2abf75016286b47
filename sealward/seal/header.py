"""What a sealed object says in clear: the name of the key that its data key is wrapped under.

An AWS Encryption SDK message, format version 2, begins with
`version[1] suite[2] message id[32] context[2+n] count[2]`, and each wrapped data key with the id
and the info of its provider, both with a length of two bytes before them. The info of a raw AES key
is its name, then the length of the tag in bits and that of the IV, four bytes each, then the IV:
https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/message-format.html.

What stands in clear is authenticated when the object is opened, not here.
"""

from __future__ import annotations

import struct

from sealward.seal.errors import SealBrokenError

_VERSION = 2
_PROVIDER = b"sealward"
# Tag of 128 bits, IV of 12 bytes: what follows the key's name.
_TAIL = struct.pack(">II", 128, 12)
_TAIL_BYTES = len(_TAIL) + 12


def key_name_of(sealed: bytes) -> str:
    """Return the name of the key that a sealed object was sealed under; raise SealBrokenError."""
    try:
        context = int.from_bytes(_take(sealed, 35, 2))
        place = 37 + context
        count = int.from_bytes(_take(sealed, place, 2))
        provider = _field(sealed, place + 2)
        info = _field(sealed, place + 4 + len(provider))
        name = info[:-_TAIL_BYTES].decode("ascii")
    except (IndexError, UnicodeDecodeError):
        raise SealBrokenError("not a sealed object") from None
    if (
        sealed[0] != _VERSION
        or count != 1
        or provider != _PROVIDER
        or not info[len(name) :].startswith(_TAIL)
    ):
        raise SealBrokenError("not a sealed object")
    return name


def _field(data: bytes, place: int) -> bytes:
    return _take(data, place + 2, int.from_bytes(_take(data, place, 2)))


def _take(data: bytes, place: int, length: int) -> bytes:
    found = data[place : place + length]
    if len(found) != length:
        raise IndexError
    return found
