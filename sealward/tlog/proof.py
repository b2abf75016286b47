"""The text of a transparency log proof (c2sp.org/tlog-proof)."""

from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass

from sealward.tlog.errors import ProofFormatError
from sealward.tlog.merkle import HASH_SIZE
from sealward.tlog.text import decode_base64, decode_decimal

HEADER = "c2sp.org/tlog-proof@v1"
"""The first line."""

MAX_PROOF_SIZE = 1 << 20
"""Bytes; a longer text is refused unread."""

MAX_PATH = 63
"""Hashes; no tree is deeper."""


@dataclass(frozen=True, slots=True)
class TlogProof:
    """A proof, taken apart.

    Leaf index, inclusion path (hashes of 32 bytes), signed checkpoint and extra data. Nothing in it
    has been verified. `extra` is None where the line is missing.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def format(self) -> bytes:
        """Return the text."""
        return format_proof(self.index, self.path, self.checkpoint, self.extra)

    @classmethod
    def parse(cls, data: bytes) -> "TlogProof":
        """Parse a text; raises ProofFormatError for anything but its one spelling."""
        if len(data) > MAX_PROOF_SIZE:
            raise ProofFormatError("proof is too large")
        head, blank, checkpoint = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise ProofFormatError("proof is not ASCII before its checkpoint") from error
        if not blank or lines.pop(0) != HEADER:
            raise ProofFormatError("proof does not begin or end as it should")
        try:
            extra = None
            if lines and lines[0].startswith("extra "):
                extra = decode_base64(lines.pop(0)[len("extra ") :])
            if not lines or not lines[0].startswith("index "):
                raise ProofFormatError("proof has no index")
            index = decode_decimal(lines.pop(0)[len("index ") :])
            path = tuple(decode_base64(line) for line in lines)
        except ValueError as error:
            raise ProofFormatError("proof has a malformed line") from error
        if len(path) > MAX_PATH or any(len(h) != HASH_SIZE for h in path):
            raise ProofFormatError("proof has a path that cannot be")
        return cls(index, path, checkpoint, extra)


def format_proof(
    index: int, path: bytes | Sequence[bytes], checkpoint: bytes, extra: bytes | None = None
) -> bytes:
    """Return the text of a proof.

    `path` is the inclusion path as single hashes or as joined ones, the way `Tree.inclusions` gives
    it. `checkpoint` is the signed note, copied verbatim.
    """
    if isinstance(path, bytes):
        path = [path[i : i + HASH_SIZE] for i in range(0, len(path), HASH_SIZE)]
    head = f"{HEADER}\n".encode()
    if extra is not None:
        head += b"extra " + b2a_base64(extra)
    head += f"index {index}\n".encode()
    return b"".join((head, *map(b2a_base64, path), b"\n", checkpoint))
