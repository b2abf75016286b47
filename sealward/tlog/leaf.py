r"""The layout of an entry, and the binding that ties it to one call.

    leaf    = 0x01 || event id[16] || binding[32] || sealed
    sealed  = segment id[8] || key commitment[32] || AES-256-GCM ciphertext with its Tink prefix
    binding = SHA-256("sealward/binding/v1\n" || salt[32] || SHA-256(request message)
              || SHA-256(response message) || model digest[32] || outcome byte)

A digest whose part does not exist is 32 zero bytes. Who has the salt and the messages can show that
an entry is about them; nobody else can guess them from it.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from sealward.tlog.errors import LeafError
from sealward.tlog.tiles import MAX_ENTRY_SIZE

VERSION = 1
"""The first byte of a leaf."""

EVENT_ID_SIZE = 16
"""Bytes of an event id (UUIDv7)."""

DIGEST_SIZE = 32
"""Bytes of a binding, of each digest in it and of the model digest (SHA-256)."""

SALT_SIZE = 32
"""Bytes of the binding's salt."""

PREFIX_SIZE = 1 + EVENT_ID_SIZE + DIGEST_SIZE
"""Bytes of the clear part of a leaf."""

MIN_SEALED_SIZE = 8 + 32 + 5 + 12 + 16
"""Bytes of a sealed part without content: segment id, commitment, Tink prefix, nonce, tag."""

MIN_LEAF_SIZE = PREFIX_SIZE + MIN_SEALED_SIZE
"""Bytes of the shortest leaf."""

NO_DIGEST = bytes(DIGEST_SIZE)
"""Stands for a part of a call that does not exist."""

NO_BINDING = bytes(DIGEST_SIZE)
"""The binding of an entry that is about no call, such as an exported span."""

_DOMAIN = b"sealward/binding/v1\n"


class Outcome(IntEnum):
    """How a call ended; the value is the outcome byte of the binding."""

    OK = 0
    DENIED = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf, taken apart."""

    event_id: bytes
    binding: bytes
    sealed: bytes


def binding(
    salt: bytes, request: bytes, response: bytes, model: bytes, outcome: Outcome | int
) -> bytes:
    """Return the binding of a call, 32 bytes.

    `request` and `response` are the SHA-256 of the uncompressed gRPC messages as received and as
    sent, `model` the SHA-256 of the model file; an empty value stands for a part that does not
    exist. Raises ValueError for a value of another length or an unknown outcome.
    """
    if len(salt) != SALT_SIZE:
        raise ValueError("the salt of a binding is 32 bytes long")
    digests = (request or NO_DIGEST, response or NO_DIGEST, model or NO_DIGEST)
    if any(len(digest) != DIGEST_SIZE for digest in digests):
        raise ValueError("a digest in a binding is 32 bytes long")
    return sha256(b"".join((_DOMAIN, salt, *digests, bytes([Outcome(outcome)])))).digest()


def leaf_prefix(event_id: bytes, binding_: bytes) -> bytes:
    """Return the clear part of a leaf, 49 bytes; raises ValueError for a wrong length."""
    if len(event_id) != EVENT_ID_SIZE or len(binding_) != DIGEST_SIZE:
        raise ValueError("an event id is 16 bytes long and a binding 32")
    return b"\x01" + event_id + binding_


def parse_leaf(data: bytes) -> Leaf:
    """Take a leaf apart; raises LeafError if its version or its length cannot be."""
    if not MIN_LEAF_SIZE <= len(data) <= MAX_ENTRY_SIZE:
        raise LeafError("leaf is too short or too long")
    if data[0] != VERSION:
        raise LeafError("leaf is of an unknown version")
    return Leaf(
        data[1 : 1 + EVENT_ID_SIZE], data[1 + EVENT_ID_SIZE : PREFIX_SIZE], data[PREFIX_SIZE:]
    )
