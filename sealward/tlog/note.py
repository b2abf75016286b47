"""Signed notes and verifier keys (c2sp.org/signed-note).

A note is a text and one or more signature lines. Who signed is told by name and key id together;
lines of unknown keys are ignored, one bad line of a known key refuses the whole note.

Ed25519 (type 0x01) is built in. `Signer` and `Verifier` are open: another signature type is another
class with the same three members, and an entry in the `types` of `parse_vkey`; cosignature.py has
two.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sealward.tlog.errors import NoteError, SignatureError
from sealward.tlog.text import decode_base64, encode_base64

ED25519 = 0x01
"""Signature type byte of plain Ed25519."""

MAX_NOTE_SIZE = 1 << 20
"""Bytes; a longer note is refused unread."""

MAX_SIGNATURES = 100
"""Signature lines; more are refused. The specification asks for at least 16."""

_CONTROL = bytes(set(range(0x20)) - {0x0A})
_REMEMBERED = 8
_NAME = re.compile(r"[^\s+\x00-\x1f]+")
_DASH = "\N{EM DASH} "


class Signer(Protocol):
    """Makes the signature lines of one key."""

    @property
    def name(self) -> str:
        """The key's name; for a log, its origin."""

    @property
    def key_id(self) -> bytes:
        """4 bytes that tell the keys of one name apart."""

    def sign(self, text: bytes) -> bytes:
        """Return the signature over the text of a note, without the key id."""


class Verifier(Protocol):
    """Checks the signature lines of one key."""

    @property
    def name(self) -> str:
        """The key's name; for a log, its origin."""

    @property
    def key_id(self) -> bytes:
        """4 bytes that tell the keys of one name apart."""

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Return whether the signature (without the key id) is valid for the text."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, unverified."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A note as parsed (unverified) or as opened (`verified` names the lines that hold)."""

    text: bytes
    signatures: tuple[Signature, ...]
    verified: tuple[Signature, ...] = ()


def check_name(name: str) -> str:
    """Return the key name; raises NoteError if it is empty or has spaces, plus or control signs."""
    if _NAME.fullmatch(name) is None:
        raise NoteError("key name is empty or contains a space, a plus or a control character")
    return name


def key_id(name: str, signature_type: int, public_key: bytes) -> bytes:
    """Return the 4-byte key id: SHA-256(name || newline || type || public key)[:4]."""
    material = name.encode() + b"\n" + bytes([signature_type]) + public_key
    return sha256(material).digest()[:4]


class Ed25519Verifier:
    """Verifies Ed25519 lines of one key.

    The last few signatures that held are remembered: the receipts of one batch share a checkpoint,
    and a verification costs more than all the rest of a receipt.
    """

    __slots__ = ("_held", "_key", "key_id", "name", "public_key")

    def __init__(self, name: str, public_key: bytes) -> None:
        self.name = check_name(name)
        if len(public_key) != 32:
            raise NoteError("an Ed25519 public key is 32 bytes long")
        self.public_key = public_key
        self.key_id = key_id(name, ED25519, public_key)
        self._key = Ed25519PublicKey.from_public_bytes(public_key)
        # Replaced as a whole and never changed, so that threads may share a verifier.
        self._held: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def vkey(self) -> str:
        """The verifier key line: `name+hex key id+base64(0x01 || public key)`."""
        encoded = encode_base64(bytes([ED25519]) + self.public_key)
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Return whether `signature` (64 bytes) is this key's over `text`."""
        pair = (signature, text)
        if pair in self._held:
            return True
        try:
            self._key.verify(signature, text)
        except InvalidSignature:
            return False
        self._held = (pair, *self._held[: _REMEMBERED - 1])
        return True


class Ed25519Signer:
    """Signs notes with one Ed25519 key (32-byte private seed)."""

    __slots__ = ("_key", "key_id", "name", "verifier")

    def __init__(self, name: str, private_key: bytes) -> None:
        if len(private_key) != 32:
            raise NoteError("an Ed25519 private key is 32 bytes long")
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.verifier = Ed25519Verifier(name, self._key.public_key().public_bytes_raw())
        self.name = self.verifier.name
        self.key_id = self.verifier.key_id

    @classmethod
    def generate(cls, name: str) -> tuple["Ed25519Signer", bytes]:
        """Return a signer with a new key, and the key's 32 private bytes to be kept sealed."""
        private = Ed25519PrivateKey.generate().private_bytes_raw()
        return cls(name, private), private

    @property
    def vkey(self) -> str:
        """The verifier key line of this signer."""
        return self.verifier.vkey

    def sign(self, text: bytes) -> bytes:
        """Return the 64-byte signature over `text`."""
        return self._key.sign(text)


VKEY_TYPES: Mapping[int, Callable[[str, bytes], Verifier]] = MappingProxyType(
    {ED25519: Ed25519Verifier}
)
"""Signature type byte → class made of (name, public key bytes)."""


def parse_vkey(
    line: str, types: Mapping[int, Callable[[str, bytes], Verifier]] = VKEY_TYPES
) -> Verifier:
    """Parse one verifier key line `name+hex8+base64(type || public key)`.

    Raises NoteError if it is malformed, of an unknown type, or its key id does not match.
    """
    parts = line.split("+", 2)
    if len(parts) != 3:
        raise NoteError("verifier key is not of the form name+id+key")
    name, hex_id, encoded = parts
    try:
        material = decode_base64(encoded)
    except ValueError as error:
        raise NoteError("verifier key is not base64") from error
    make = types.get(material[0]) if material else None
    if make is None:
        raise NoteError("verifier key is of an unknown type")
    verifier = make(check_name(name), material[1:])
    if verifier.key_id.hex() != hex_id:
        raise NoteError("verifier key does not match its id")
    return verifier


def parse_vkeys(
    text: str, types: Mapping[int, Callable[[str, bytes], Verifier]] = VKEY_TYPES
) -> list[Verifier]:
    """Parse a file of verifier keys: one a line, empty lines ignored.

    Raises NoteError if a line is malformed or there is none.
    """
    verifiers = [parse_vkey(line.strip(), types) for line in text.splitlines() if line.strip()]
    if not verifiers:
        raise NoteError("there is no verifier key")
    return verifiers


def sign_note(text: bytes, signers: Sequence[Signer]) -> bytes:
    """Return the signed note with one line for each signer, in order.

    Raises NoteError if the text is not UTF-8 ending in a newline, or has control characters.
    """
    _check_text(text)
    if not signers:
        raise NoteError("a note needs a signer")
    made = [Signature(s.name, s.key_id, s.sign(text)) for s in signers]
    return text + b"\n" + format_signatures(made)


def format_signatures(signatures: Iterable[Signature]) -> bytes:
    """Return signature lines as they stand in a note."""
    lines = (f"{_DASH}{s.name} {encode_base64(s.key_id + s.signature)}\n" for s in signatures)
    return "".join(lines).encode()


def parse_signatures(data: bytes) -> tuple[Signature, ...]:
    """Take signature lines apart, without verifying anything; raises NoteError."""
    _check_text(data)
    lines = data.decode()[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError("note has too many signatures")
    return tuple(_parse_line(line) for line in lines)


def add_signatures(note: bytes, signatures: Iterable[Signature]) -> bytes:
    """Return the signed note with those of the lines added that are by keys it has no line of.

    Raises NoteError if the note is malformed or becomes too large.
    """
    there = {(line.name, line.key_id) for line in parse_note(note).signatures}
    fresh = {(s.name, s.key_id): s for s in signatures if (s.name, s.key_id) not in there}
    grown = note + format_signatures(fresh.values())
    parse_note(grown)
    return grown


def parse_note(data: bytes) -> Note:
    """Split a signed note into text and signature lines, without verifying anything.

    Raises NoteError if it is malformed or too large.
    """
    if len(data) > MAX_NOTE_SIZE:
        raise NoteError("note is too large")
    _check_text(data)
    split = data.rfind(b"\n\n")
    if split < 0:
        raise NoteError("note has no signatures")
    text, block = data[: split + 1], data[split + 2 :]
    if not block:
        raise NoteError("note has no signatures")
    return Note(text, parse_signatures(block))


def open_note(data: bytes, verifiers: Sequence[Verifier]) -> Note:
    """Parse a signed note and verify it with the known keys.

    Returns the note with `verified` filled: the lines of known keys, each key once. Raises
    NoteError if it is malformed, SignatureError if a line of a known key does not hold or there is
    none.
    """
    note = parse_note(data)
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.name, verifier.key_id), verifier) is not verifier:
            raise NoteError("two verifier keys share name and id")
    verified: dict[tuple[str, bytes], Signature] = {}
    for signature in note.signatures:
        identity = (signature.name, signature.key_id)
        match = known.get(identity)
        if match is None:
            continue
        if not match.verify(note.text, signature.signature):
            raise SignatureError("signature of a known key does not hold")
        verified.setdefault(identity, signature)
    if not verified:
        raise SignatureError("note is not signed by a known key")
    return Note(note.text, note.signatures, tuple(verified.values()))


def _check_text(text: bytes) -> None:
    if not text.endswith(b"\n"):
        raise NoteError("note does not end in a newline")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise NoteError("note is not UTF-8") from error
    if text.translate(None, _CONTROL) != text:
        raise NoteError("note contains control characters")


def _parse_line(line: str) -> Signature:
    if not line.startswith(_DASH):
        raise NoteError("signature line does not begin with a dash")
    name, _, encoded = line[len(_DASH) :].partition(" ")
    check_name(name)
    try:
        material = decode_base64(encoded)
    except ValueError as error:
        raise NoteError("signature is not base64") from error
    if len(material) < 5:
        raise NoteError("signature line is too short")
    return Signature(name, material[:4], material[4:])
