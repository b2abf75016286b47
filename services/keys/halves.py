"""The other halves of the key-encryption keys: one sealed file beside the keystore, in no backup.

    halves.sealed   one random half of each key (32 bytes); the other one is in keystore.sealed, and
                    the key is the two combined by exclusive or

Neither half says anything about the key (secret sharing, two of two). So a key is destroyed by
destroying this half: every copy of the keystore, and every backup of it, old ones too, then has a
half that opens nothing. Of this file only the newest copy is ever kept: it is a file of its own, is
replaced in each place where it is copied to, and stands in no archive.

Each write is a generation, and the keystore knows the newest one: an older file that is put back
stops the start.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sealward.seal.context import EncryptionContext
from sealward.seal.objects import KEY_BYTES, ObjectSealer
from sealward.seal.secret import Secret
from services.keys.files import write_durable

FILE = "halves.sealed"
_SCHEMA = "sealward/halves/v1"


@dataclass(frozen=True, slots=True)
class KeyHalves:
    """The halves of one key, by version. What is below `lowest` was destroyed."""

    lowest: int
    halves: dict[int, Secret] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Halves:
    """What the file holds. `keys` by `tenant/purpose`.

    `destroyed`: the newest version of a key that was destroyed on purpose; `destruction`: the
    generation of the last of these.
    """

    deployment: str
    generation: int = 0
    keys: dict[str, KeyHalves] = field(default_factory=dict)
    destroyed: dict[str, int] = field(default_factory=dict)
    destruction: int = 0

    def of(self, name: str) -> KeyHalves:
        """Return the halves of a key."""
        return self.keys.get(name) or KeyHalves(1)

    def with_half(self, name: str, version: int, half: Secret) -> Halves:
        """Return the next generation, with one more half."""
        found = self.of(name)
        return self._with(name, replace(found, halves={**found.halves, version: half}))

    def without(self, name: str, below: int) -> Halves:
        """Return the next generation, without the versions before `below` of a key."""
        found = self.of(name)
        kept = {version: half for version, half in found.halves.items() if version >= below}
        return self._with(name, KeyHalves(max(found.lowest, below), kept))

    def after_destruction(self, name: str, through: int) -> Halves:
        """Return the next generation, which says that a key was destroyed up to a version."""
        known = max(self.destroyed.get(name, 0), through)
        following = self.without(name, through + 1)
        return replace(
            following,
            destroyed={**self.destroyed, name: known},
            destruction=following.generation,
        )

    def _with(self, name: str, of_key: KeyHalves) -> Halves:
        return replace(self, generation=self.generation + 1, keys={**self.keys, name: of_key})


def combine(one: bytes, other: bytes) -> bytes:
    """Return the key of two halves, or the other half of a key and one half."""
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def seal_halves(root: Secret, halves: Halves) -> bytes:
    """Return the content of the file."""
    document = {
        "version": 1,
        "generation": halves.generation,
        "destruction": halves.destruction,
        "destroyed": halves.destroyed,
        "keys": {
            name: {
                "lowest": key.lowest,
                "halves": {
                    str(version): base64.b64encode(half.reveal()).decode("ascii")
                    for version, half in key.halves.items()
                },
            }
            for name, key in halves.keys.items()
        },
    }
    return _sealer(root).seal(_context(halves.deployment), json.dumps(document).encode())


def open_halves(root: Secret, deployment: str, sealed: bytes) -> Halves:
    """Read the file; raise SealBrokenError, or ValueError, KeyError or TypeError."""
    document: dict[str, Any] = json.loads(_sealer(root).open(_context(deployment), sealed))
    if document["version"] != 1:
        raise ValueError("another version")
    keys = {}
    for name, key in document["keys"].items():
        halves = {
            int(version): Secret(base64.b64decode(half, validate=True))
            for version, half in key["halves"].items()
        }
        if any(len(half) != KEY_BYTES for half in halves.values()):
            raise ValueError("another length")
        keys[str(name)] = KeyHalves(int(key["lowest"]), halves)
    return Halves(
        deployment,
        int(document["generation"]),
        keys,
        {str(name): int(version) for name, version in document["destroyed"].items()},
        int(document["destruction"]),
    )


def write_halves(path: Path, sealed: bytes) -> None:
    """Replace the file, durably, then overwrite what was there before; raise OSError.

    Overwriting is all that a program can do: a disk that writes elsewhere keeps old blocks for a
    while, and a snapshot of a disk for as long as it is kept.
    """
    try:
        before = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        before = -1
    try:
        write_durable(path, sealed)
        if before >= 0:
            size = os.fstat(before).st_size
            os.pwrite(before, bytes(size), 0)
            os.fsync(before)
    finally:
        if before >= 0:
            os.close(before)


def _sealer(root: Secret) -> ObjectSealer:
    return ObjectSealer(root.reveal(), key_name="root", schema=_SCHEMA)


def _context(deployment: str) -> EncryptionContext:
    return EncryptionContext("default", "halves", deployment)
