"""Cosignatures: what a witness says of a checkpoint (c2sp.org/tlog-cosignature).

A cosignature is a signature line whose bytes are a timestamp (8 bytes, big-endian, seconds since
the epoch) and a signature. Two types: Ed25519 (0x04), which signs the whole text of the checkpoint,
and ML-DSA-44 (0x06), which signs the cosigner's name, the origin, the size and the root.

ML-DSA needs a `cryptography` that has it (`ml_dsa_supported`); without, its keys are refused with a
NoteError that says so.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealward.tlog.checkpoint import Checkpoint
from sealward.tlog.errors import CheckpointError, NoteError
from sealward.tlog.note import Verifier, check_name, key_id
from sealward.tlog.text import encode_base64

ED25519_COSIGNATURE = 0x04
"""Signature type byte of timestamped Ed25519 cosignatures."""

ML_DSA_44_COSIGNATURE = 0x06
"""Signature type byte of timestamped ML-DSA-44 cosignatures."""

SEED_SIZE = 32
"""Bytes of a private key of either type."""

_TIMESTAMP = 8
_MAX_TIMESTAMP = (1 << 63) - 1
_LABEL = b"subtree/v1\n\0"


class CosignatureVerifier(Protocol):
    """Checks the cosignatures of one key (note.Verifier)."""

    name: str
    key_id: bytes
    public_key: bytes
    """As in a verifier key, without the type byte."""

    @property
    def vkey(self) -> str:
        """The verifier key line."""

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Return whether the cosignature (timestamp and signature) is valid for a checkpoint."""

    def message(self, text: bytes, timestamp: int) -> bytes:
        """Return what is signed of a checkpoint's text; raises CheckpointError."""


class _Cosignature:
    """What both types share; `_key.verify(signature, message)` raises InvalidSignature."""

    __slots__ = ("_key", "key_id", "name", "public_key")

    type: int
    signature_size: int

    def __init__(self, name: str, public_key: bytes) -> None:
        self.name = check_name(name)
        self._key = self._load(public_key)
        self.public_key = public_key
        self.key_id = key_id(name, self.type, public_key)

    @property
    def vkey(self) -> str:
        """The verifier key line: `name+hex key id+base64(type || public key)`."""
        encoded = encode_base64(bytes([self.type]) + self.public_key)
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Return whether this is the key's cosignature of a checkpoint with this text."""
        if len(signature) != _TIMESTAMP + self.signature_size:
            return False
        try:
            message = self.message(text, timestamp_of(signature))
            self._key.verify(signature[_TIMESTAMP:], message)
        except (InvalidSignature, CheckpointError):
            return False
        return True

    def message(self, text: bytes, timestamp: int) -> bytes:
        """Return what is signed; raises CheckpointError."""
        raise NotImplementedError

    def _load(self, public_key: bytes) -> "_Verifies":
        raise NotImplementedError


class _Verifies(Protocol):
    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise InvalidSignature unless the signature is valid."""


class Ed25519CosignatureVerifier(_Cosignature):
    """Verifies Ed25519 cosignatures of one key (32 bytes, public)."""

    type = ED25519_COSIGNATURE
    signature_size = 64

    def message(self, text: bytes, timestamp: int) -> bytes:
        """Return the header line, the time and the whole text; raises CheckpointError."""
        Checkpoint.parse(text)
        return b"cosignature/v1\ntime %d\n%s" % (timestamp, text)

    def _load(self, public_key: bytes) -> _Verifies:
        if len(public_key) != 32:
            raise NoteError("an Ed25519 public key is 32 bytes long")
        return Ed25519PublicKey.from_public_bytes(public_key)


class MlDsa44CosignatureVerifier(_Cosignature):
    """Verifies ML-DSA-44 cosignatures of one key (1312 bytes, public).

    They do not cover extension lines.
    """

    type = ML_DSA_44_COSIGNATURE
    signature_size = 2420

    def message(self, text: bytes, timestamp: int) -> bytes:
        """Return the `cosigned_message` of the whole tree; raises CheckpointError."""
        checkpoint = Checkpoint.parse(text)
        return b"".join(
            (
                _LABEL,
                _opaque(self.name),
                timestamp.to_bytes(8, "big"),
                _opaque(checkpoint.origin),
                bytes(8),
                checkpoint.size.to_bytes(8, "big"),
                checkpoint.root,
            )
        )

    def _load(self, public_key: bytes) -> _Verifies:
        if len(public_key) != 1312:
            raise NoteError("an ML-DSA-44 public key is 1312 bytes long")
        try:
            from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

            return MLDSA44PublicKey.from_public_bytes(public_key)
        except (ImportError, UnsupportedAlgorithm):
            raise NoteError("this installation of cryptography has no ML-DSA") from None


COSIGNATURE_TYPES: Mapping[int, Callable[[str, bytes], Verifier]] = MappingProxyType(
    {
        ED25519_COSIGNATURE: Ed25519CosignatureVerifier,
        ML_DSA_44_COSIGNATURE: MlDsa44CosignatureVerifier,
    }
)
"""The `types` of note.parse_vkey for the keys of witnesses."""


class Cosigner:
    """Cosigns checkpoints (note.Signer).

    `sign_bytes` signs with the private key, which may be anywhere; `clock` gives seconds since the
    epoch.
    """

    __slots__ = ("_clock", "_sign", "key_id", "name", "verifier")

    def __init__(
        self,
        verifier: CosignatureVerifier,
        sign_bytes: Callable[[bytes], bytes],
        clock: Callable[[], int],
    ) -> None:
        self.verifier = verifier
        self.name = verifier.name
        self.key_id = verifier.key_id
        self._sign = sign_bytes
        self._clock = clock

    @property
    def vkey(self) -> str:
        """The verifier key line of this cosigner."""
        return self.verifier.vkey

    def sign(self, text: bytes) -> bytes:
        """Return timestamp and signature over a checkpoint's text, now; raises as `sign_at`."""
        return self.sign_at(text, self._clock())

    def sign_at(self, text: bytes, timestamp: int) -> bytes:
        """Return timestamp and signature over a checkpoint's text; raises CheckpointError.

        Raises ValueError for a time outside of 1 to 2**63 - 1: a cosignature of a tree as the
        newest one has a time.
        """
        if not 0 < timestamp <= _MAX_TIMESTAMP:
            raise ValueError("no time that a cosignature could have")
        signature = self._sign(self.verifier.message(text, timestamp))
        return timestamp.to_bytes(_TIMESTAMP, "big") + signature


def ed25519_cosigner(name: str, seed: bytes, clock: Callable[[], int]) -> Cosigner:
    """Return the cosigner of an Ed25519 private key (32 bytes); raises NoteError."""
    if len(seed) != SEED_SIZE:
        raise NoteError("an Ed25519 private key is 32 bytes long")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    return Cosigner(Ed25519CosignatureVerifier(name, public), key.sign, clock)


def ml_dsa_44_cosigner(name: str, seed: bytes, clock: Callable[[], int]) -> Cosigner:
    """Return the cosigner of an ML-DSA-44 private key (32 bytes of seed); raises NoteError."""
    if len(seed) != SEED_SIZE:
        raise NoteError("the seed of an ML-DSA-44 private key is 32 bytes long")
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

        key = MLDSA44PrivateKey.from_seed_bytes(seed)
    except (ImportError, UnsupportedAlgorithm):
        raise NoteError("this installation of cryptography has no ML-DSA") from None
    public = key.public_key().public_bytes_raw()
    return Cosigner(MlDsa44CosignatureVerifier(name, public), key.sign, clock)


def ml_dsa_supported() -> bool:
    """Return whether ML-DSA-44 can be signed and verified here."""
    try:
        ml_dsa_44_cosigner("probe", bytes(SEED_SIZE), lambda: 1)
    except NoteError:
        return False
    return True


def timestamp_of(signature: bytes) -> int:
    """Return the time of a cosignature, seconds since the epoch; raises CheckpointError."""
    timestamp = int.from_bytes(signature[:_TIMESTAMP], "big")
    if len(signature) < _TIMESTAMP or timestamp > _MAX_TIMESTAMP:
        raise CheckpointError("cosignature has no time")
    return timestamp


def _opaque(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= 255:
        raise CheckpointError("a name is too long to be cosigned with ML-DSA-44")
    return bytes([len(data)]) + data
