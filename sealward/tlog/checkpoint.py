"""Checkpoints: signed tree heads (c2sp.org/tlog-checkpoint)."""

from collections.abc import Sequence
from dataclasses import dataclass

from sealward.tlog.errors import CheckpointError, SignatureError
from sealward.tlog.merkle import EMPTY_ROOT, HASH_SIZE
from sealward.tlog.note import Note, Signer, Verifier, open_note, sign_note
from sealward.tlog.text import decode_base64, decode_decimal, encode_base64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: `origin` names it, `root` (32 bytes) covers its first `size` leaves."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def marshal(self) -> bytes:
        """Return the note text; raises CheckpointError for values that have no text."""
        lines = (self.origin, str(self.size), encode_base64(self.root), *self.extensions)
        text = "".join(f"{line}\n" for line in lines).encode()
        if Checkpoint.parse(text) != self:
            raise CheckpointError("checkpoint fields contain newlines")
        return text

    @classmethod
    def parse(cls, text: bytes) -> "Checkpoint":
        """Parse the text of a note (without signatures); raises CheckpointError."""
        try:
            lines = text.decode().split("\n")
        except UnicodeDecodeError as error:
            raise CheckpointError("checkpoint is not UTF-8") from error
        if len(lines) < 4 or lines.pop() or not all(lines):
            raise CheckpointError("checkpoint does not have three non-empty lines")
        try:
            size, root = decode_decimal(lines[1]), decode_base64(lines[2])
        except ValueError as error:
            raise CheckpointError("checkpoint has a malformed size or root") from error
        if len(root) != HASH_SIZE or (size == 0 and root != EMPTY_ROOT):
            raise CheckpointError("checkpoint has a root that cannot be")
        return cls(lines[0], size, root, tuple(lines[3:]))


def sign_checkpoint(checkpoint: Checkpoint, signers: Sequence[Signer]) -> bytes:
    """Return the signed note of a checkpoint, one line for each signer.

    The log's own signers carry its origin as their name.
    """
    return sign_note(checkpoint.marshal(), signers)


def open_checkpoint(
    data: bytes, verifiers: Sequence[Verifier], origin: str | None = None
) -> Checkpoint:
    """Verify and parse a signed checkpoint.

    At least one line must be by a known key that carries the checkpoint's origin as its name: a key
    that is known for another log, or a witness alone, proves nothing about this one. Where `origin`
    is given, the checkpoint must be of that log. Raises NoteError, SignatureError (a NoteError) or
    CheckpointError.
    """
    return open_signed_checkpoint(data, verifiers, origin)[0]


def open_signed_checkpoint(
    data: bytes, verifiers: Sequence[Verifier], origin: str | None = None
) -> tuple[Checkpoint, Note]:
    """Do what `open_checkpoint` does, and return the opened note (who signed) as well."""
    note = open_note(data, verifiers)
    checkpoint = Checkpoint.parse(note.text)
    if origin is not None and checkpoint.origin != origin:
        raise CheckpointError("checkpoint is of another log")
    if not any(line.name == checkpoint.origin for line in note.verified):
        raise SignatureError("checkpoint is not signed by the log that it names")
    return checkpoint, note
