"""Local enrolment: how a process gets its certificate on one machine.

The process makes its key, writes `<name>.csr` into the enrolment folder and waits for `<name>.crt`.
The keys service signs it. The folder belongs to one account and is closed to all others (0700):
whoever can write there owns the deployment already. A second machine needs a join token instead.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from sealward.kit.errors import StartupError
from sealward.kit.tls import Material, key_to_pem, load_material, make_csr, new_key

_POLL_SECONDS = 0.02


def private_folder(path: Path) -> Path:
    """Make a folder with mode 0700, or check that an existing one is ours and closed to others."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise StartupError(f"{path} belongs to another account")
    if found.st_mode & 0o077:
        raise StartupError(f"{path} is open to others: chmod 700 {path}")
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600 so that a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def enroll(folder: Path, name: str, timeout: float) -> Material:
    """Make a key and have it certified; raise StartupError after `timeout` seconds.

    A certificate for another key (of an earlier run that died) is waited past, not taken.
    """
    private_folder(folder)
    key = new_key()
    request = make_csr(key, name).public_bytes(Encoding.PEM)
    certificate = folder / f"{name}.crt"
    certificate.unlink(missing_ok=True)
    write_private(folder / f"{name}.csr", request)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            chain = certificate.read_bytes()
            bundle = (folder / "ca.pem").read_bytes()
            material = load_material(key_to_pem(key), chain, bundle)
        except (FileNotFoundError, StartupError):
            time.sleep(_POLL_SECONDS)
            continue
        certificate.unlink(missing_ok=True)
        return material
    raise StartupError(
        f"no certificate for {name} after {timeout:.0f} s: is the keys service running?"
    )
