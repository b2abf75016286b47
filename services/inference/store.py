"""Where sealed packages lie: `<folder>/<name>/<version>.sealed`, its wrapped key beside as `.key`.

Knows nothing of keys or contents. Files are written to a temporary name, synced and renamed, so
that a reader sees a whole package or none. `wrapping` is held by who makes a key and keeps it, and
by who replaces wrapped keys.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sealward.seal.durable import sync_folder
from services.inference.manifest import Name, Version

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_VERSION: TypeAdapter[str] = TypeAdapter(Version)
_SEALED = ".sealed"
_KEY = ".key"
_TEMPORARY = ".tmp"


class ModelStore:
    """The sealed packages of one inference service. The folder is made when it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.wrapping = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in folder.glob(f"*/*{_TEMPORARY}"):
            leftover.unlink()

    def list(self) -> list[tuple[str, str]]:
        """Return (name, version) of every package that is there, sorted by name."""
        found = [
            (path.parent.name, path.name.removesuffix(_SEALED))
            for path in self._folder.glob(f"*/*{_SEALED}")
        ]
        return sorted(pair for pair in found if _is_valid(*pair))

    def has(self, name: str, version: str) -> bool:
        """True when this package is there."""
        return self._path(name, version, _SEALED).exists()

    def read(self, name: str, version: str) -> tuple[bytes, bytes]:
        """Return (sealed package, wrapped key); raise OSError."""
        return (
            self._path(name, version, _SEALED).read_bytes(),
            self._path(name, version, _KEY).read_bytes(),
        )

    def write(self, name: str, version: str, sealed: bytes, wrapped: bytes) -> None:
        """Keep a package. The key goes first: a package without its key would be lost."""
        key_path = self._path(name, version, _KEY)
        key_path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(key_path, wrapped)
        _write(self._path(name, version, _SEALED), sealed)
        sync_folder(self._folder)

    def wrapped(self, name: str, version: str) -> bytes | None:
        """Return the wrapped key of a package, None when there is none; raise OSError."""
        try:
            return self._path(name, version, _KEY).read_bytes()
        except FileNotFoundError:
            return None

    def replace_wrapped(self, name: str, version: str, wrapped: bytes) -> None:
        """Replace the wrapped key of a package; raise OSError. To be called under `wrapping`."""
        _write(self._path(name, version, _KEY), wrapped)

    def _path(self, name: str, version: str, suffix: str) -> Path:
        if not _is_valid(name, version):
            raise ValueError("not the name and version of a model")
        return self._folder / name / f"{version}{suffix}"


def _is_valid(name: str, version: str) -> bool:
    try:
        _NAME.validate_python(name)
        _VERSION.validate_python(version)
    except ValidationError:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + _TEMPORARY)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)
