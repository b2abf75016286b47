"""Real logs for tests: signed, tiled, of any size, the same bytes on every run."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from sealward.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealward.tlog.leaf import MIN_SEALED_SIZE, NO_BINDING, leaf_prefix
from sealward.tlog.merkle import Tree, leaf_hash
from sealward.tlog.note import Ed25519Signer, Signer
from sealward.tlog.tiles import CHECKPOINT_PATH, files_between

ORIGIN = "sealward.local/0123abcd/default/2026"


def signer(seed: int = 1, name: str = ORIGIN) -> Ed25519Signer:
    """Return a signer whose key depends on `seed` alone."""
    return Ed25519Signer(name, sha256(b"test key %d" % seed).digest())


def entry(index: int, size: int = MIN_SEALED_SIZE, binding: bytes = NO_BINDING) -> bytes:
    """Return a leaf with `size` sealed bytes that look random."""
    event_id = sha256(b"event %d" % index).digest()[:16]
    block = sha256(b"sealed %d" % index).digest()
    return leaf_prefix(event_id, binding) + (block * (size // 32 + 1))[:size]


def entries(count: int, size: int = MIN_SEALED_SIZE) -> list[bytes]:
    """Return `count` leaves; their lengths differ a little."""
    return [entry(i, size + i % 3) for i in range(count)]


def tree_of(leaves: Sequence[bytes]) -> Tree:
    """Return the tree over the leaves."""
    return Tree(leaf_hash(leaf) for leaf in leaves)


def log_files(
    leaves: Sequence[bytes],
    sizes: Sequence[int] = (),
    signers: Sequence[Signer] | None = None,
    origin: str = ORIGIN,
) -> dict[str, bytes]:
    """Return path → content of a log that published its tiles at each of `sizes`, then of all."""
    tree = tree_of(leaves)
    files: dict[str, bytes] = {}
    old = 0
    for new in (*sizes, len(leaves)):
        files.update(files_between(tree, lambda start, end: leaves[start:end], old, new))
        old = new
    checkpoint = Checkpoint(origin, len(leaves), tree.root())
    files[CHECKPOINT_PATH] = sign_checkpoint(checkpoint, signers or [signer(name=origin)])
    return files


def reader(files: dict[str, bytes]) -> "DictReader":
    """Return a reader of the files for `verify_log`."""
    return DictReader(files)


class DictReader:
    """Reads from a dictionary; a missing file is a FileNotFoundError."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def __call__(self, path: str) -> bytes:
        """Return the content at `path`."""
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None


def write_log(directory: Path, files: dict[str, bytes]) -> None:
    """Write the files below `directory`."""
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
