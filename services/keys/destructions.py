"""The destructions of a deployment, on the disk: one sealed file, replaced whole with each step.

It is sealed under a branch key of its own (purpose `trust`), made anew with each write: nobody who
can write to the disk, but has no key, has anything destroyed. What is read back has to be what two
people signed, too. A file that was taken away calls off what was not carried out yet, and no more:
what was destroyed stays so.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import open_object, seal_object
from services.keys.destruction import OPEN, Destruction, State, Subject, check_kept
from services.keys.files import read_private, write_durable
from services.keys.providers.base import BranchKeys

FILE = "destructions.sealed"
CONTEXT = EncryptionContext("default", "trust", "destructions")
_MOST = 4096
_MOST_OPEN = 64


class Destructions:
    """The file, opened. Thread-safe."""

    def __init__(self, path: Path, keys: BranchKeys) -> None:
        """Read it; raise StartupError when it is damaged, SealwardError to try again."""
        self._path = path
        self._keys = keys
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._known: dict[str, Destruction] = read_destructions(path, keys)
        self._through: dict[tuple[str, str], int] = {}
        for found in self._known.values():
            self._note(found)
        self._count = len(self._through)

    @property
    def changed(self) -> threading.Condition:
        """Notified with each change."""
        return self._changed

    @property
    def count(self) -> int:
        """Grows each time that keys are destroyed, for as long as this process lives."""
        return self._count

    def all(self) -> list[Destruction]:
        """Every destruction, newest first."""
        with self._lock:
            return sorted(self._known.values(), key=lambda found: -found.requested_at)

    def get(self, destruction_id: str) -> Destruction:
        """Return one; raise NOT_FOUND."""
        found = self._known.get(destruction_id)
        if found is None:
            raise SealwardError(Reason.NOT_FOUND, "there is no such destruction", field="id")
        return found

    def add(self, destruction: Destruction) -> None:
        """Enter a request, durably; raise ALREADY_EXISTS, OVERLOADED or KEYSTORE_UNAVAILABLE."""
        with self._lock:
            if destruction.subject.id in self._known:
                raise SealwardError(
                    Reason.ALREADY_EXISTS, "this statement was used before", field="jws"
                )
            open_ones = [found for found in self._known.values() if found.state in OPEN]
            same = replace(destruction.subject, id="", reason="")
            if any(replace(f.subject, id="", reason="") == same for f in open_ones):
                raise SealwardError(
                    Reason.ALREADY_EXISTS, "its destruction is asked for already", field="jws"
                )
            if len(open_ones) >= _MOST_OPEN or len(self._known) >= _MOST:
                raise SealwardError(
                    Reason.OVERLOADED, "too many destructions are open", retry_after=3600.0
                )
            self._write({**self._known, destruction.subject.id: destruction})

    def put(self, before: Destruction, after: Destruction) -> Destruction:
        """Replace a destruction unless it changed meanwhile, durably; return the new one.

        Raises DESTRUCTION_STATE, KEYSTORE_UNAVAILABLE.
        """
        with self._lock:
            if self.get(before.subject.id) != before:
                raise SealwardError(
                    Reason.DESTRUCTION_STATE, "it changed meanwhile: look again", field="id"
                )
            self._write({**self._known, after.subject.id: after})
            self._note(after)
            if after.state in (State.EXECUTING, State.DONE) and after.step != before.step:
                self._count += 1
            self._changed.notify_all()
        return after

    def forget(self, destruction: Destruction) -> None:
        """Take a request back whose record could not be written."""
        with self._lock:
            self._write({i: f for i, f in self._known.items() if f != destruction})

    def rewrap(self) -> bool:
        """Seal the file anew where its key-encryption key has a newer version by now.

        Returns whether it had; raises SealwardError.
        """
        with self._lock:
            try:
                wrapped = _bytes(json.loads(self._path.read_bytes())[0])
            except FileNotFoundError:
                return False
            except (OSError, ValueError):
                raise SealwardError(
                    Reason.SEAL_BROKEN, "the list of destructions cannot be read"
                ) from None
            newest = self._keys.versions(CONTEXT.tenant, CONTEXT.purpose).newest
            if self._keys.version_of(wrapped) >= newest:
                return False
            self._write(self._known)
            return True

    def destroyed(self, tenant: str, purpose: str) -> int:
        """Return the newest version of a key that was destroyed on purpose, 0 for none."""
        return self._through.get((tenant, purpose), 0)

    def know(self, destroyed: Mapping[str, int]) -> None:
        """Learn what a keystore says was destroyed, by `tenant/purpose`, as after a restore."""
        with self._lock:
            for name, through in destroyed.items():
                tenant, _, purpose = name.partition("/")
                known = self._through.get((tenant, purpose), 0)
                self._through[tenant, purpose] = max(known, through)

    def _note(self, found: Destruction) -> None:
        # A patient's destruction takes versions that others have left before.
        if found.state in (State.EXECUTING, State.DONE) and not found.subject.resource:
            self.know({f"{found.subject.tenant}/{found.subject.purpose}": found.through})

    def _write(self, known: dict[str, Destruction]) -> None:
        document = {"version": 1, "destructions": [_encode(found) for found in known.values()]}
        key, wrapped = self._keys.create(CONTEXT)
        sealed = seal_object(key, CONTEXT, json.dumps(document).encode())
        try:
            write_durable(self._path, json.dumps([_text(wrapped), _text(sealed)]).encode())
        except OSError:
            raise SealwardError(
                Reason.KEYSTORE_UNAVAILABLE,
                "the list of destructions cannot be written",
                retry_after=1.0,
            ) from None
        self._known = known


def read_destructions(path: Path, keys: BranchKeys) -> dict[str, Destruction]:
    """Read the file; raise StartupError when it is damaged, SealwardError to try again."""
    try:
        wrapped, sealed = map(_bytes, json.loads(read_private(path)))
        key = keys.open(CONTEXT, wrapped)
        document = json.loads(open_object(key, CONTEXT, sealed))
        if document["version"] != 1:
            raise ValueError("another version")
        known = [_decode(value) for value in document["destructions"]]
        for found in known:
            check_kept(found)
    except FileNotFoundError:
        return {}
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        SealBrokenError,
        SealwardError,
    ) as bad:
        if isinstance(bad, SealwardError) and bad.reason is Reason.KEYSTORE_UNAVAILABLE:
            raise
        raise StartupError(
            f"{path} is damaged, or of another keystore: move it aside to begin a new one"
            " (what is not carried out yet has to be asked for again)"
        ) from None
    return {found.subject.id: found for found in known}


def _encode(found: Destruction) -> dict[str, Any]:
    value = dataclasses.asdict(found)
    return {**value, "jws": _text(found.jws)}


def _decode(value: dict[str, Any]) -> Destruction:
    return Destruction(
        **{
            **value,
            "subject": Subject(**value["subject"]),
            "state": State(value["state"]),
            "jws": _bytes(value["jws"]),
        }
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
