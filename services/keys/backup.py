"""Makes backups of the embedded keystore, and knows when the last one and the last drill were.

The archive leaves by an RPC of the local administrator; the root key in it is sealed to the unlock
secret, which is not in the archive, and to the recovery recipients of the settings, which no caller
can choose. A backup counts once its file is on a disk and the caller has said so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
from prometheus_client import CollectorRegistry, Gauge

from sealward.api.keys.v1 import backup_pb2 as pb
from sealward.api.keys.v1.backup_pb2_grpc import BackupServiceServicer
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.reasons import Code, Reason
from sealward.seal.context import EncryptionContext
from sealward.seal.objects import ObjectSealer, seal_object
from services.keys import archive
from services.keys.keystore import Keystore
from services.keys.keystoreformat import format_head
from services.keys.providers.base import BranchKeys
from services.keys.records import Recorder, about_call
from services.keys.register import Register

MANIFEST_SCHEMA = "sealward/keys-backup/v1"
_SHA256_HEX = 64
_INFINITE = float("inf")
_BACKUP, _DRILL = "backup", "drill"
_MOST_WAITING = 8


def canary_context(canary: str) -> EncryptionContext:
    """What the canary of a backup is for."""
    return EncryptionContext("default", "backup", f"canary-{canary}")


def manifest_context(deployment: str) -> EncryptionContext:
    """What the sum of a backup's manifest is sealed for."""
    return EncryptionContext("default", "backup", f"manifest-{deployment}")


def read_recipients(path: Path | None) -> tuple[str, ...]:
    """Read age recipients (`age1…`), one a line, `#` before a remark; raise StartupError."""
    if path is None:
        return ()
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise StartupError(f"the recovery recipients {path} cannot be read") from None
    lines = [line.strip() for line in text.splitlines()]
    found = tuple(line for line in lines if line and not line.startswith("#"))
    try:
        for line in found:
            pyrage.x25519.Recipient.from_str(line)
    except pyrage.RecipientError:
        raise StartupError(f"{path} holds what is no age recipient (age1…)") from None
    if not found:
        raise StartupError(f"{path} holds no age recipient")
    return found


class BackupMaker:
    """Makes archives of a keystore."""

    def __init__(
        self,
        keystore: Keystore,
        branches: BranchKeys,
        register: Register,
        recipients: tuple[str, ...],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keystore = keystore
        self._branches = branches
        self._register = register
        self._recipients = recipients
        self._clock = clock

    @property
    def generation(self) -> int:
        """The keystore's generation now."""
        return self._keystore.content.generation

    @property
    def recipients(self) -> int:
        """How many recovery recipients a backup is sealed to."""
        return len(self._recipients)

    def halves(self) -> tuple[int, int]:
        """Generations: of the other halves now, and of the last destruction among them."""
        return self._keystore.halves.generation, self._keystore.halves.destruction

    def make_halves(self) -> tuple[int, bytes]:
        """Return generation and content of a copy of the other halves, to go with an archive."""
        return self._keystore.copy_halves()

    def make(self) -> tuple[archive.Manifest, bytes]:
        """Return manifest and archive; raise KEYSTORE_UNAVAILABLE."""
        # First: its key may be the first of its purpose, which is a generation of its own.
        canary = self._canary()
        content, files, root = self._keystore.copy()
        members = {**files, archive.CANARY: canary}
        if self._recipients:
            head = format_head(root, content.deployment)
            to = [pyrage.x25519.Recipient.from_str(line) for line in self._recipients]
            members[archive.RECOVERY] = pyrage.encrypt(head, to)
        revocations = self._register.sealed_revocations()
        if revocations is not None:
            members[archive.REVOCATIONS] = json.dumps(
                {"wrapped": _text(revocations[0]), "sealed": _text(revocations[1])}
            ).encode()
        manifest = archive.Manifest(
            content.deployment,
            content.trust_domain,
            content.generation,
            int(self._clock()),
            self._recipients,
            archive.sums(members),
        )
        manifest_json = manifest.to_json()
        sealer = ObjectSealer(root.reveal(), key_name="root", schema=MANIFEST_SCHEMA)
        members[archive.MANIFEST_SEALED] = sealer.seal(
            manifest_context(content.deployment), hashlib.sha256(manifest_json).digest()
        )
        return manifest, archive.pack(manifest_json, members, manifest.made_at)

    def _canary(self) -> bytes:
        name = secrets.token_hex(8)
        context = canary_context(name)
        plain = secrets.token_bytes(32)
        key, wrapped = self._branches.create(context)
        document = {
            "name": name,
            "sha256": hashlib.sha256(plain).hexdigest(),
            "wrapped": _text(wrapped),
            "sealed": _text(seal_object(key, context, plain)),
        }
        return json.dumps(document).encode()


class BackupLog:
    """When the last backup and the last drill were: notes in the register, and metrics of them."""

    def __init__(
        self,
        register: Register,
        maker: BackupMaker | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._register = register
        self._maker = maker
        self._clock = clock

    def backup(self) -> dict[str, Any]:
        """The last backup whose file was written; empty when there was none."""
        return self._register.note(_BACKUP)

    def drill(self) -> dict[str, Any]:
        """The last drill; empty when there was none."""
        return self._register.note(_DRILL)

    def written(self, manifest: archive.Manifest, sha256: str, halves: int = 0) -> None:
        """Note a backup; raise KEYSTORE_UNAVAILABLE."""
        self._register.put_note(
            _BACKUP,
            {
                "made_at": manifest.made_at,
                "generation": manifest.generation,
                "recipients": len(manifest.recipients),
                "sha256": sha256,
                "halves": halves,
            },
        )

    def drilled(self, *, passed: bool, generation: int, sha256: str) -> None:
        """Note a drill; raise KEYSTORE_UNAVAILABLE."""
        self._register.put_note(
            _DRILL,
            {
                "made_at": int(self._clock()),
                "passed": passed,
                "generation": generation,
                "sha256": sha256,
            },
        )

    def backup_age(self) -> float:
        """Seconds since the newest backup was made; infinite when there is none."""
        return self._age(self.backup())

    def drill_age(self) -> float:
        """Seconds since a drill passed last; infinite when none did, or the last one failed."""
        last = self.drill()
        return self._age(last) if last.get("passed") else _INFINITE

    def behind(self) -> float:
        """How many changes of the keystore the newest backup lacks."""
        if self._maker is None:
            return 0.0
        return float(self._maker.generation - int(self.backup().get("generation", 0)))

    def _age(self, note: dict[str, Any]) -> float:
        return max(0.0, self._clock() - float(note["made_at"])) if note else _INFINITE


def backup_metrics(registry: CollectorRegistry, log: BackupLog) -> None:
    """Register the metrics of backups (embedded provider)."""
    for name, text, read in (
        (
            "backup_age_seconds",
            "Time since the newest backup was made",
            log.backup_age,
        ),
        ("backup_behind", "Changes of the keystore that the newest backup lacks", log.behind),
        ("drill_age_seconds", "Time since a drill passed last", log.drill_age),
    ):
        Gauge(f"sealward_keys_{name}", text, registry=registry).set_function(read)


class BackupServicer(BackupServiceServicer):
    """The RPCs. `maker` is None where the keys are in Vault."""

    def __init__(self, maker: BackupMaker | None, log: BackupLog, recorder: Recorder) -> None:
        self._maker = maker
        self._recorder = recorder
        self._log = log
        # Archives that were handed out and not yet said to be written, oldest first.
        self._waiting: dict[str, tuple[archive.Manifest, int]] = {}

    def CreateBackup(
        self, _request: pb.CreateBackupRequest, context: Any
    ) -> pb.CreateBackupResponse:
        """Make an archive."""
        maker = self._embedded()
        manifest, data = maker.make()
        generation, halves = maker.make_halves()
        sha256 = hashlib.sha256(data).hexdigest()
        attributes = call_of(context).attributes
        attributes["target"] = f"{manifest.deployment}@{manifest.generation}"
        attributes["count"] = len(manifest.recipients)
        self._waiting[sha256] = manifest, generation
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.pop(next(iter(self._waiting)), None)
        return pb.CreateBackupResponse(
            archive=data,
            deployment=manifest.deployment,
            generation=manifest.generation,
            recipients=len(manifest.recipients),
            sha256=sha256,
            halves=halves,
            halves_generation=generation,
        )

    def ConfirmBackup(
        self, request: pb.ConfirmBackupRequest, context: Any
    ) -> pb.ConfirmBackupResponse:
        """Note that an archive is on a disk."""
        self._embedded()
        waiting = self._waiting.get(request.sha256)
        if waiting is None:
            raise SealwardError(Reason.NOT_FOUND, "no such backup was made lately", field="sha256")
        manifest, halves = waiting
        call_of(context).attributes["target"] = f"{manifest.deployment}@{manifest.generation}"
        self._log.written(manifest, request.sha256, halves)
        self._waiting.pop(request.sha256, None)
        return pb.ConfirmBackupResponse()

    def RecordDrill(self, request: pb.RecordDrillRequest, context: Any) -> pb.RecordDrillResponse:
        """Note a drill and how it ended."""
        self._embedded()
        if len(request.sha256) != _SHA256_HEX or not request.sha256.isalnum():
            raise SealwardError(Reason.FIELD_INVALID, "sha256 has 64 hex digits", field="sha256")
        call = call_of(context)
        call.attributes["target"] = f"{request.sha256[:16]}@{request.generation}"
        self._recorder.record(
            "keys.drill",
            "ok" if request.passed else "failed",
            start_unix_nano=time.time_ns() - request.duration_ms * 1_000_000,
            code=(Code.OK if request.passed else Code.DATA_LOSS).name,
            reason=None if request.passed else Reason.SEAL_BROKEN.name,
            **about_call(call),
        )
        self._log.drilled(
            passed=request.passed, generation=request.generation, sha256=request.sha256
        )
        return pb.RecordDrillResponse()

    def GetBackupState(
        self, _request: pb.GetBackupStateRequest, _context: Any
    ) -> pb.GetBackupStateResponse:
        """Tell of the last backup and the last drill."""
        maker = self._embedded()
        backup, drill = self._log.backup(), self._log.drill()
        halves, destruction = maker.halves()
        copied = int(backup.get("halves", 0))
        return pb.GetBackupStateResponse(
            generation=maker.generation,
            recipients=maker.recipients,
            backup_made_at=int(backup.get("made_at", 0)),
            backup_generation=int(backup.get("generation", 0)),
            drill_made_at=int(drill.get("made_at", 0)),
            drill_passed=bool(drill.get("passed", False)),
            halves_generation=halves,
            backup_halves_generation=copied,
            halves_copy_opens_destroyed=0 < copied < destruction,
        )

    def _embedded(self) -> BackupMaker:
        if self._maker is None:
            raise SealwardError(
                Reason.NOT_SUPPORTED,
                "the keys are in Vault: its own snapshots are their backup",
            )
        return self._maker


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
