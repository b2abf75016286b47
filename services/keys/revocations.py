"""The list of revoked certificates: kept sealed in the register, pushed to every service.

The list is sealed under a branch key of its own (purpose `trust`), made anew with each write and
kept wrapped beside it: nobody who can write to the disk, but has no key, takes a certificate off
the list. An entry is pushed until its certificate has expired; one for a compromised key stays
after that, so that the key is never certified again.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Peer
from sealward.kit.reasons import Reason
from sealward.kit.revocation import Revocations
from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.objects import ObjectSealer
from services.keys.profiles import Profile, read_request
from services.keys.providers.base import BranchKeys, CertificateAuthority, Issued
from services.keys.register import IssuedRow, Register

KEY_COMPROMISE = "key-compromise"
REASONS = (KEY_COMPROMISE, "privilege-withdrawn", "cessation", "superseded")
"""Why a certificate may be revoked; a subset of RFC 5280 section 5.3.1."""

CONTEXT = EncryptionContext("default", "trust", "revocations")
_SCHEMA = 1
# Clocks differ: an expired certificate is refused by its date anyhow.
_AFTER_END = 3600
# Of a certificate that is not in the register nothing is known: longer than any of ours lives.
_LONGEST_LIFE = 8 * 86400
_BANNED_SECONDS = 366 * 86400
_SIGN_OF_LIFE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Revoked:
    """A revoked certificate. Times are seconds since the epoch; `until`: pushed so long.

    `identity` and `spki` (SHA-256 of the public key, hex) are empty where they are not known.
    """

    serial: str
    identity: str
    spki: str
    reason: str
    revoked_at: int
    until: int


class RevocationList:
    """The list of this deployment. Thread-safe.

    `view` is what this process itself goes by; it learns each change before anybody is told that it
    happened.
    """

    def __init__(
        self,
        register: Register,
        keys: BranchKeys,
        view: Revocations,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._register = register
        self._keys = keys
        self._view = view
        self._clock = clock
        self._changed = threading.Condition()
        self._version = 0
        self._entries: dict[str, Revoked] = {}
        self._banned: frozenset[str] = frozenset()
        self._closed = False
        self._nudges = 0

    def load(self) -> None:
        """Read the list; raise StartupError when it does not open, SealwardError to try again."""
        found = self._register.sealed_revocations()
        version, entries = 0, list[Revoked]()
        if found is not None:
            try:
                version, entries = open_list(self._keys, *found)
            except SealBrokenError:
                raise StartupError(
                    "the list of revoked certificates in the register does not open: it is "
                    "damaged, or of another keystore"
                ) from None
        self._install(version, entries)

    @property
    def version(self) -> int:
        """Grows by one with each change; 0 = nothing was ever revoked."""
        return self._version

    def entries(self, identity: str = "") -> list[Revoked]:
        """What was revoked, of one identity or of all, the last first."""
        found = [e for e in self._entries.values() if not identity or e.identity == identity]
        return sorted(found, key=lambda e: (-e.revoked_at, e.serial))

    def bans(self, spki: bytes) -> bool:
        """True when no certificate may be issued for this public key (SHA-256)."""
        return spki.hex() in self._banned

    def holds(self, serial: int) -> bool:
        """True when this certificate was revoked."""
        return serial in self._view

    def revoke(self, reason: str, *, serial: str = "", identity: str = "") -> list[Revoked]:
        """Revoke one certificate, or all of an identity; return what was not revoked before.

        When it returns, the list is durable and this process goes by it. Raises NOT_FOUND for an
        identity without a living certificate, KEYSTORE_UNAVAILABLE.
        """
        # A certificate that is being issued is entered before or after: never in between.
        with self._register.held():
            now = int(self._clock())
            if identity:
                self._register.void_tokens(identity, now)
                rows = self._register.living(now, identity)
                if not rows:
                    raise SealwardError(Reason.NOT_FOUND, "this identity has no living certificate")
            else:
                rows = [self._register.find(serial) or _unknown(serial, now)]
            fresh = [
                Revoked(
                    row.serial, row.identity, row.spki.hex(), reason, now,
                    row.not_after + _AFTER_END,
                )
                for row in rows
                if row.serial not in self._entries
            ]  # fmt: skip
            if fresh:
                kept = [e for e in self._entries.values() if _still_needed(e, now)]
                self._write(self._version + 1, [*kept, *fresh])
            return fresh

    def rewrap(self) -> bool:
        """Seal the list anew where its key-encryption key has a newer version by now.

        Returns whether it had; raises SealwardError.
        """
        with self._register.held():
            found = self._register.sealed_revocations()
            if found is None:
                return False
            newest = self._keys.versions(CONTEXT.tenant, CONTEXT.purpose).newest
            if self._keys.version_of(found[0]) >= newest:
                return False
            self._write(self._version, list(self._entries.values()))
            return True

    def follow(self, active: Callable[[], bool]) -> Iterator[tuple[int, list[str] | None]]:
        """Yield version and serial numbers at once and after each change, until `active` is False.

        In between, every few seconds, the version with None: it is still the same.
        """
        seen, nudges = -1, self._nudges
        while active():
            with self._changed:
                if self._version == seen and nudges == self._nudges and not self._closed:
                    self._changed.wait(_SIGN_OF_LIFE_SECONDS)
                if self._closed:
                    return
                version, nudges = self._version, self._nudges
                serials = None if version == seen else self._pushed()
            yield version, serials
            seen = version

    def nudge(self) -> None:
        """Have something sent at once to everybody who follows: there is other news."""
        with self._changed:
            self._nudges += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End everybody's following."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _write(self, version: int, entries: list[Revoked]) -> None:
        document = {
            "schema": _SCHEMA,
            "version": version,
            "revoked": [asdict(entry) for entry in entries],
        }
        key, wrapped = self._keys.create(CONTEXT)
        sealed = ObjectSealer(key).seal(CONTEXT, json.dumps(document).encode())
        self._register.put_revocations(wrapped, sealed)
        self._install(version, entries)

    def _install(self, version: int, entries: list[Revoked]) -> None:
        with self._changed:
            self._entries = {entry.serial: entry for entry in entries}
            self._banned = frozenset(
                e.spki for e in entries if e.reason == KEY_COMPROMISE and e.spki
            )
            self._version = version
            self._view.learn(version, [int(serial, 16) for serial in self._pushed()])
            self._changed.notify_all()

    def _pushed(self) -> list[str]:
        now = self._clock()
        return [entry.serial for entry in self._entries.values() if entry.until > now]


class Issuance:
    """Issues certificates; each stands in the register before it is handed out.

    No key is certified again whose certificate was revoked because the key was compromised.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        register: Register,
        revocations: RevocationList,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._register = register
        self._revocations = revocations
        self._clock = clock

    @property
    def bundle_pem(self) -> bytes:
        """The certificates to trust, PEM."""
        return self._authority.bundle_pem

    def issue(
        self,
        profile: Profile,
        request: x509.CertificateSigningRequest,
        asked_by: Peer | None = None,
    ) -> Issued:
        """Sign a leaf; raise CERTIFICATE_REQUEST_INVALID, KEY_REVOKED or KEYSTORE_UNAVAILABLE.

        CERTIFICATE_REVOKED when who asks over the wire was revoked meanwhile.
        """
        public = read_request(request).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        spki = hashlib.sha256(public).digest()
        if self._revocations.bans(spki):
            raise SealwardError(
                Reason.KEY_REVOKED,
                "this key belongs to a revoked certificate: make a new key",
                field="csr",
            )
        issued = self._authority.issue(profile, request)
        self._register.add(
            IssuedRow(
                f"{issued.serial:x}",
                profile.identity.uri,
                spki,
                int(self._clock()),
                issued.not_after,
            )
        )
        # Entered first: if the revocation did not find this certificate, we find the revocation.
        if asked_by is not None and self._revocations.holds(asked_by.serial):
            raise SealwardError(Reason.CERTIFICATE_REVOKED, "the certificate was revoked")
        return issued


def open_list(keys: BranchKeys, wrapped: bytes, sealed: bytes) -> tuple[int, list[Revoked]]:
    """Open a sealed list and return its version and entries.

    Raises SealBrokenError, and SealwardError where the provider cannot answer now.
    """
    try:
        key = keys.open(CONTEXT, wrapped)
        document: dict[str, Any] = json.loads(ObjectSealer(key).open(CONTEXT, sealed))
        if document["schema"] != _SCHEMA:
            raise ValueError("another version")
        return int(document["version"]), [Revoked(**entry) for entry in document["revoked"]]
    except SealwardError as error:
        if error.reason is not Reason.SEAL_BROKEN:
            raise
    except (ValueError, KeyError, TypeError):
        pass
    raise SealBrokenError("the list of revoked certificates does not open")


def _unknown(serial: str, now: int) -> IssuedRow:
    return IssuedRow(serial, "", b"", 0, now + _LONGEST_LIFE)


def _still_needed(entry: Revoked, now: int) -> bool:
    banned = entry.reason == KEY_COMPROMISE and entry.spki
    return entry.until > now or bool(banned and entry.revoked_at + _BANNED_SECONDS > now)
