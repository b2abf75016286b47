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
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import open_object, seal_object
from services.inference.golden import MAX_GOLDEN_BYTES, Golden, GoldenError, parse_golden
from services.inference.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestError, parse_manifest
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


class BranchKeys(Protocol):
    """Where branch keys come from."""

    def create(self, context: EncryptionContext) -> tuple[bytes, bytes]:
        """Make a key; return (key, wrapped key). Raise SealwardError."""

    def open(self, context: EncryptionContext, wrapped: bytes) -> bytes:
        """Open a wrapped key. Raise SealwardError."""


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
    """Return the archive's files; raise PackageError for anything but what `pack` writes."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for name, limit in MEMBERS:
                member = tar.next()
                if member is None or member.name != name or not member.isreg():
                    raise PackageError(f"{name} is not where it belongs in the archive")
                content = tar.extractfile(member) if member.size <= limit else None
                if content is None:
                    raise PackageError(f"{name} is too large")
                files[name] = content.read()
    except tarfile.TarError:
        raise PackageError("the archive is damaged") from None
    if pack(files) != archive:
        raise PackageError("the archive is not in its one form")
    return files


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read the files of a package from a folder; raise PackageError."""
    try:
        return {name: (folder / name).read_bytes() for name, _ in MEMBERS}
    except OSError:
        raise PackageError(f"the package folder {folder.name} is not complete") from None


def context_of(name: str, version: str, tenant: str = DEFAULT_TENANT) -> EncryptionContext:
    """The encryption context of a model package."""
    return EncryptionContext(tenant=tenant, purpose=PURPOSE, resource=f"{name}@{version}")


def push(store: ModelStore, keys: BranchKeys, files: dict[str, bytes]) -> Package:
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
    context = context_of(name, version)
    key, wrapped = keys.create(context)
    store.write(name, version, seal_object(key, context, pack(files)), wrapped)
    return package


def load(store: ModelStore, keys: BranchKeys, name: str, version: str) -> Package:
    """Open a package in memory.

    Raise PackageError when it is damaged, swapped or not what its place says, SealwardError when
    the key cannot be had.
    """
    try:
        sealed, wrapped = store.read(name, version)
    except OSError:
        raise PackageError("the sealed package or its wrapped key cannot be read") from None
    context = context_of(name, version)
    key = keys.open(context, wrapped)
    try:
        package = read_package(unpack(open_object(key, context, sealed)))
    except SealBrokenError:
        raise PackageError("the sealed package does not open: it was changed or swapped") from None
    if (package.manifest.name, package.manifest.version) != (name, version):
        raise PackageError("the package is of another model than its place says")
    return package
