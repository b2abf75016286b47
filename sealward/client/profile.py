"""The profile folder: what a client needs, and what it keeps.

    ca.pem cert.pem key.pem log.vkey profile.json     written by whoever issues the profile
    session                                           token of `login`
    checkpoint                                        last verified checkpoint of the log
    calls.ndjson calls-*.ndjson sequence              list of the own calls, see calls.py

All are 0600 in a folder of 0700. What the client writes, it writes to a temporary file and renames,
so that a reader sees all of it or none.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sealward.client.checkpoints import Seen
from sealward.client.errors import NotLoggedInError, ProfileError
from sealward.kit.errors import StartupError
from sealward.kit.tls import Material, load_material
from sealward.tlog.checkpoint import Checkpoint, open_checkpoint
from sealward.tlog.errors import TlogError
from sealward.tlog.note import Verifier, parse_note, parse_vkeys

_FIELDS = ("user", "gateway", "server_name", "spiffe_id")


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile folder and what `profile.json` says.

    `gateway` is host:port, `server_name` the DNS name that the gateway's certificate must carry,
    `spiffe_id` the identity in the client's own certificate.
    """

    folder: Path
    user: str
    gateway: str
    server_name: str
    spiffe_id: str

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Profile:
        """Read a profile folder; raises ProfileError naming the file that is not right."""
        root = Path(folder).expanduser()
        path = root / "profile.json"
        try:
            content = json.loads(_read(path))
        except (ValueError, RecursionError):
            raise ProfileError(f"{path} is not JSON") from None
        fields = _strings(path, content)
        try:
            open_to_others = (root / "key.pem").stat().st_mode & 0o007
        except OSError:
            raise ProfileError(f"{root / 'key.pem'} cannot be read") from None
        if open_to_others:
            raise ProfileError(f"{root / 'key.pem'} is open to others: chmod 600 it")
        return cls(root, *(fields[name] for name in _FIELDS))

    def material(self) -> Material:
        """Return key, certificate and trust bundle; raises ProfileError."""
        try:
            return load_material(
                _read(self.folder / "key.pem"),
                _read(self.folder / "cert.pem"),
                _read(self.folder / "ca.pem"),
            )
        except StartupError as error:
            raise ProfileError(f"{self.folder}: {error}") from None

    def install(self, chain_pem: bytes, bundle_pem: bytes) -> None:
        """Keep a renewed certificate and the trust bundle that came with it."""
        # The bundle first: it holds the old authority and the new one while they overlap.
        write_private(self.folder / "ca.pem", bundle_pem)
        write_private(self.folder / "cert.pem", chain_pem)

    def vkeys(self) -> list[Verifier]:
        """Return the verifier keys of the log; raises ProfileError."""
        path = self.folder / "log.vkey"
        try:
            return parse_vkeys(_read(path).decode())
        except (TlogError, UnicodeDecodeError):
            raise ProfileError(f"{path} is not a list of verifier keys") from None

    def token(self) -> str:
        """Return the session token; raises NotLoggedInError."""
        try:
            token = (self.folder / "session").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        if not token:
            raise NotLoggedInError(f"{self.user} is not logged in")
        return token

    def keep_token(self, token: str) -> None:
        """Keep the session token; an empty one forgets it."""
        if token:
            write_private(self.folder / "session", token.encode())
        else:
            (self.folder / "session").unlink(missing_ok=True)

    def checkpoints(self) -> dict[str, Seen]:
        """Return the last verified checkpoint of each log (by origin); raises ProfileError.

        An empty file, as a power loss may leave, counts as none.
        """
        found: dict[str, Seen] = {}
        vkeys = self.vkeys()
        for path in sorted(self.folder.glob("checkpoint*")):
            note = _read(path)
            if not note:
                continue
            try:
                checkpoint = open_checkpoint(note, vkeys)
            except TlogError:
                raise ProfileError(
                    f"{path} is not a checkpoint of the log: restore it, or remove it to begin anew"
                ) from None
            seen = Seen(checkpoint.size, checkpoint.root, note)
            held = found.get(checkpoint.origin)
            if held is None or held.size < seen.size:
                found[checkpoint.origin] = seen
        return found

    def keep_checkpoint(self, origin: str, seen: Seen) -> None:
        """Keep a verified checkpoint. That of another log (another year) stays beside it."""
        path = self.folder / "checkpoint"
        try:
            held = Checkpoint.parse(parse_note(path.read_bytes()).text).origin
        except (OSError, TlogError):
            held = origin
        if held != origin:
            # Another client of this profile may have met the other log at the same moment.
            with suppress(FileNotFoundError):
                path.replace(path.with_name(f"checkpoint.{sha256(held.encode()).hexdigest()[:8]}"))
        # Not synced: losing the newest one in a power loss costs the memory of a moment, while a
        # sync would cost every call.
        write_private(path, seen.note, sync=False)


def write_private(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file with mode 0600 so that a reader sees all of it or none."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise ProfileError(f"{path} cannot be read") from None


def _strings(path: Path, content: Any) -> Mapping[str, str]:
    if not isinstance(content, dict):
        raise ProfileError(f"{path} is not a JSON object")
    for name in _FIELDS:
        if not isinstance(content.get(name), str) or not content[name]:
            raise ProfileError(f"{path} has no {name}")
    return content
