"""Sealed model packages: one file a model version, opened in memory, never written in clear.

Inside the seal is a USTAR archive with fixed metadata, so that the same files give the same bytes.
A package is sealed under a branch key of its own, bound to `name@version`; the wrapped key lies
beside it. Destroying that key at the keys service makes the package unreadable for good.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sealward.kit.errors import SealwardError
from sealward.kit.keysclient import KeyRing
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from services.inference.golden import MAX_GOLDEN_BYTES, Golden, GoldenError, parse_golden
from services.inference.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestError, parse_manifest
from services.inference.modelfile import ModelFileError, check_model_file
from services.inference.store import ModelStore

DEFAULT_TENANT = "default"
PURPOSE = "model"
MAX_MODEL_BYTES = 1 << 30
MAX_CARD_BYTES = 1 << 20

# Name in the archive, and how large it may be. The order is the archive's.
MEMBERS: tuple[tuple[str, int], ...] = (
    ("manifest.json", MAX_MANIFEST_BYTES),
    ("card.md", MAX_CARD_BYTES),
    ("golden.json", MAX_GOLDEN_BYTES),
    ("model.onnx", MAX_MODEL_BYTES),
)


class PackageError(ValueError):
    """The package is not usable. Its text names the part that is wrong."""


class KeyDestroyedError(PackageError):
    """The key of a package was destroyed on purpose."""


class SealingKey(Protocol):
    """A branch key in use (sealward.kit.keysclient.BranchKey)."""

    @property
    def wrapped(self) -> bytes:
        """The wrapped key, to be kept beside what it seals."""

    def seal(self, plaintext: bytes) -> bytes:
        """Seal an object; raise SealwardError."""

    def open(self, sealed: bytes) -> bytes:
        """Open an object; raise SealwardError (SEAL_BROKEN, KEYS_UNAVAILABLE)."""

    def close(self) -> None:
        """Forget the key."""


class SealingKeys(Protocol):
    """Where branch keys come from; see RingKeys."""

    def create(self, context: EncryptionContext) -> SealingKey:
        """Make a key; raise SealwardError."""

    def open(self, context: EncryptionContext, wrapped: bytes) -> SealingKey:
        """Open a wrapped key; raise SealwardError."""


class RingKeys:
    """SealingKeys of a KeyRing. `timeout`: seconds to wait for a keys service that is starting."""

    def __init__(self, ring: KeyRing, timeout: float) -> None:
        self._ring = ring
        self._timeout = timeout

    def create(self, context: EncryptionContext) -> SealingKey:
        """Make a key; raise SealwardError."""
        return self._ring.create(context, timeout=self._timeout)

    def open(self, context: EncryptionContext, wrapped: bytes) -> SealingKey:
        """Open a wrapped key; raise SealwardError."""
        return self._ring.open(context, wrapped, timeout=self._timeout)


@dataclass(frozen=True)
class Package:
    """A model with everything that belongs to it; what it holds fits together."""

    manifest: Manifest
    golden: Golden
    card: str
    onnx: bytes

    def __repr__(self) -> str:
        return f"Package({self.manifest.ident})"


def read_package(files: dict[str, bytes]) -> Package:
    """Check the files of a package against each other; raise PackageError."""
    if set(files) != {name for name, _ in MEMBERS}:
        raise PackageError(f"a package holds exactly {', '.join(name for name, _ in MEMBERS)}")
    for name, limit in MEMBERS:
        if len(files[name]) > limit:
            raise PackageError(f"{name} is too large")
    try:
        manifest = parse_manifest(files["manifest.json"])
        golden = parse_golden(files["golden.json"], manifest)
        card = files["card.md"].decode()
    except (ManifestError, GoldenError) as error:
        raise PackageError(str(error)) from None
    except UnicodeDecodeError:
        raise PackageError("card.md is not UTF-8") from None
    if hashlib.sha256(files["model.onnx"]).hexdigest() != manifest.digest:
        raise PackageError("model.onnx is not the file whose digest the manifest names")
    try:
        check_model_file(files["model.onnx"])
    except ModelFileError as error:
        raise PackageError(f"model.onnx: {error}") from None
    return Package(manifest, golden, card, files["model.onnx"])


def pack(files: dict[str, bytes]) -> bytes:
    """Return the archive; the same files give the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, _ in MEMBERS:
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            member.mode = 0o600
            archive.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


def unpack(archive: bytes) -> dict[str, bytes]:
    """Return the archive's files; raise PackageError for anything but what `pack` writes.

    An archive has one form, so its headers and padding are compared: nothing is copied but files.
    """
    files: dict[str, bytes] = {}
    at = 0
    for name, limit in MEMBERS:
        head = archive[at : at + tarfile.BLOCKSIZE]
        try:
            size = tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape").size
        except tarfile.TarError:
            raise PackageError("the archive is damaged") from None
        if size > limit:
            raise PackageError(f"{name} is too large")
        if head != _header(name, size):
            raise PackageError(f"{name} is not where it belongs in the archive")
        begins, ends = at + tarfile.BLOCKSIZE, at + tarfile.BLOCKSIZE + size
        files[name] = archive[begins:ends]
        at = _whole(ends, tarfile.BLOCKSIZE)
        if archive[ends:at].strip(b"\0"):
            raise PackageError("the archive is not in its one form")
    # Two blocks of zeros end an archive, and it is filled up to whole records.
    if archive[at:] != bytes(_whole(at + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE) - at):
        raise PackageError("the archive is not in its one form")
    return files


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o600
    return member.tobuf(tarfile.USTAR_FORMAT)


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read the files of a package from a folder; raise PackageError."""
    try:
        return {name: (folder / name).read_bytes() for name, _ in MEMBERS}
    except OSError:
        raise PackageError(f"the package folder {folder.name} is not complete") from None


def context_of(name: str, version: str, tenant: str = DEFAULT_TENANT) -> EncryptionContext:
    """The encryption context of a model package."""
    return EncryptionContext(tenant=tenant, purpose=PURPOSE, resource=f"{name}@{version}")


def push(store: ModelStore, keys: SealingKeys, files: dict[str, bytes]) -> Package:
    """Check a package and seal it into the store.

    Raise PackageError when it is not usable, SealwardError(ALREADY_EXISTS) when that version is
    there, and what the key source raises.
    """
    package = read_package(files)
    name, version = package.manifest.name, package.manifest.version
    if store.has(name, version):
        raise SealwardError(
            Reason.ALREADY_EXISTS, "this version of the model is there already", field="version"
        )
    with store.wrapping:
        key = keys.create(context_of(name, version))
        try:
            store.write(name, version, key.seal(pack(files)), key.wrapped)
        finally:
            key.close()
    return package


def check_key(store: ModelStore, keys: SealingKeys, name: str, version: str) -> None:
    """Raise KeyDestroyedError when the key of a package was destroyed, SealwardError."""
    try:
        _, wrapped = store.read(name, version)
    except OSError:
        return
    try:
        keys.open(context_of(name, version), wrapped).close()
    except SealwardError as error:
        if error.reason is Reason.KEY_DESTROYED:
            raise KeyDestroyedError("its key was destroyed: nothing opens it") from None
        raise


def load(store: ModelStore, keys: SealingKeys, name: str, version: str) -> Package:
    """Open a package in memory; the key is forgotten when this returns.

    Raise PackageError when it is damaged, swapped or not what its place says, SealwardError
    (KEYS_UNAVAILABLE) when the key cannot be had.
    """
    try:
        sealed, wrapped = store.read(name, version)
    except OSError:
        raise PackageError("the sealed package or its wrapped key cannot be read") from None
    try:
        key = keys.open(context_of(name, version), wrapped)
        try:
            archive = key.open(sealed)
        finally:
            key.close()
    except SealwardError as error:
        if error.reason is Reason.KEY_DESTROYED:
            raise KeyDestroyedError("its key was destroyed: nothing opens it") from None
        if error.reason is Reason.SEAL_BROKEN:
            raise PackageError("the sealed package does not open: changed or swapped") from None
        raise
    package = read_package(unpack(archive))
    if (package.manifest.name, package.manifest.version) != (name, version):
        raise PackageError("the package is of another model than its place says")
    return package
