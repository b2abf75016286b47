"""A backup of the embedded keystore: one tar file, every secret in it sealed.

    manifest.json     what it is, in clear: version, deployment, generation, when, and the SHA-256
                      and size of each other member
    manifest.sealed   SHA-256 of manifest.json, under the root key: nobody else made this backup
    root.age          the root key as the keystore has it: sealed to the unlock secret, which is not
                      in here
    recovery.age      the root key sealed to the recovery recipients (age), where there are any
    keystore.sealed   the keystore, under the root key
    canary.json       a wrapped branch key and an object sealed under it: what a drill opens
    revocations.json  the sealed list of revoked certificates, where there is one

Any tar tool lists it, any age tool opens its root key. What cannot be opened can still be checked:
the sums are in clear.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = "sealward/keys-backup/v1"
MANIFEST, MANIFEST_SEALED = "manifest.json", "manifest.sealed"
RECOVERY, CANARY, REVOCATIONS = "recovery.age", "canary.json", "revocations.json"
LARGEST_BYTES = 32 << 20
_MOST_MEMBERS = 16


class ArchiveError(Exception):
    """A file is not a whole backup. The text says what is wrong with it and names no content."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. `made_at`: epoch seconds; `recipients`: recovery keys (age).

    `members`: SHA-256 (hex) and size by name.
    """

    deployment: str
    trust_domain: str
    generation: int
    made_at: int
    recipients: tuple[str, ...]
    members: dict[str, tuple[str, int]]

    def to_json(self) -> bytes:
        """The content of manifest.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup that was read and whose sums are right. `members` without the manifest."""

    manifest: Manifest
    manifest_json: bytes
    members: Mapping[str, bytes]


def pack(manifest_json: bytes, members: Mapping[str, bytes], made_at: int) -> bytes:
    """Return the tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {MANIFEST: manifest_json, **members}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o600, made_at
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sums(members: Mapping[str, bytes]) -> dict[str, tuple[str, int]]:
    """Return SHA-256 and size of each member."""
    return {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in members.items()}


def unpack(data: bytes) -> Archive:
    """Read a tar file into memory and check every sum; raise ArchiveError."""
    try:
        members = _members(data)
    except (tarfile.TarError, EOFError, ValueError, OSError):
        raise ArchiveError("it is not a backup: not a whole tar file") from None
    manifest_json = members.pop(MANIFEST, None)
    if manifest_json is None:
        raise ArchiveError(f"it is not a backup: {MANIFEST} is missing")
    try:
        document: dict[str, Any] = json.loads(manifest_json)
        if document.pop("format") != FORMAT:
            raise ArchiveError("it is a backup of another version than this program reads")
        document["recipients"] = tuple(map(str, document["recipients"]))
        document["members"] = {n: (str(s), int(z)) for n, (s, z) in document["members"].items()}
        manifest = Manifest(**document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArchiveError(f"{MANIFEST} is damaged") from None
    sealed = members.get(MANIFEST_SEALED)
    found = {name: data for name, data in members.items() if name != MANIFEST_SEALED}
    if sealed is None or set(found) != set(manifest.members):
        raise ArchiveError("it is not whole: members are missing, or there are others")
    for name, told in sums(found).items():
        if manifest.members[name] != told:
            raise ArchiveError(f"{name} in it is damaged: its sum is another")
    return Archive(manifest, manifest_json, members)


def _members(data: bytes) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            if file is None or info.name in members or len(members) >= _MOST_MEMBERS:
                raise ValueError("not one of ours")
            content = file.read()
            if len(content) != info.size:
                raise ValueError("cut off")
            members[info.name] = content
    return members
