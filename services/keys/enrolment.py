"""Local enrolment: certificate requests in a folder that only one account can write to.

A request `<name>.csr` is claimed by renaming it, so that what is checked, read and signed is one
file, and a newer request of the same name is left for the next turn. The permission of the folder
is the authenticator: whoever can write there owns the deployment. What is not a private regular
file of this account, or is not named after one of those who enrol here, is removed and recorded.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography import x509

from sealward.kit.enroll import private_folder, write_private
from sealward.kit.errors import SealwardError, StartupError
from sealward.kit.identity import Identity, parse_identity, spiffe_id
from sealward.kit.reasons import Code, Reason
from services.keys.files import FileProblemError, read_checked
from services.keys.profiles import parse_pem_request
from services.keys.providers.base import Issued
from services.keys.records import Recorder, RefusalLimit, about_actor

BUNDLE_FILE = "ca.pem"
_WHO = {"gateway": "service", "inference": "service", "audit": "service", "admin": "admin"}
_REQUEST = re.compile(r"(?!\.)(.{1,200})\.csr", re.DOTALL)
_CLAIMED = re.compile(r"\.(.{1,200})\.csr\.claimed", re.DOTALL)
_LARGEST_BYTES = 16 << 10
_POLL_SECONDS = 0.03
_BLOCKED_SECONDS = 1.0

Issue = Callable[[Identity, x509.CertificateSigningRequest], Issued]


def who_enrols(name: str, trust_domain: str) -> Identity | None:
    """The identity that a request file's name (without `.csr`) stands for; None for any other."""
    kind = _WHO.get(name)
    if kind is None:
        return None
    return parse_identity(spiffe_id(trust_domain, kind, "local" if kind == "admin" else name))


def read_claimed(path: Path, uid: int) -> bytes:
    """Read a claimed request; raise CERTIFICATE_REQUEST_INVALID saying what is wrong with the file.

    It must be a regular file of `uid`, closed to others, with one name, and no symbolic link.
    """
    try:
        return read_checked(path, frozenset({uid}), _LARGEST_BYTES, links=False)
    except FileProblemError as error:
        raise _refusal(str(error)) from None
    except FileNotFoundError:
        raise _refusal("is gone") from None


class EnrolmentFolder:
    """Watches the folder and answers requests."""

    def __init__(
        self,
        folder: Path,
        trust_domain: str,
        bundle_pem: Callable[[], bytes],
        issue: Issue,
        recorder: Recorder,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._folder = folder
        self._trust_domain = trust_domain
        self._bundle_pem = bundle_pem
        self._issue = issue
        self._recorder = recorder
        self._log = log
        self._limit = RefusalLimit()
        self._blocked = ""
        self._published = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="enrolment", daemon=True)

    def start(self) -> None:
        """Publish the trust bundle and begin to watch; raise StartupError."""
        private_folder(self._folder)
        if not self._publish():
            raise StartupError(f"{self._folder} cannot be written")
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def poll(self) -> None:
        """Answer every request that waits now."""
        try:
            # Each time: the folder may have been opened to others, or replaced, since.
            private_folder(self._folder)
            names = sorted(entry.name for entry in self._folder.iterdir())
        except (StartupError, OSError):
            self._say_once("the enrolment folder is missing or open to others")
            return
        if self._published and not self._publish():
            return
        for name in names:
            if found := _REQUEST.fullmatch(name) or _CLAIMED.fullmatch(name):
                try:
                    self._take(found[1])
                except SealwardError as error:
                    # The record could not be written. The request stays for the next turn.
                    self._say_once(error.reason.name)
                    return
                except OSError:
                    self._say_once("the enrolment folder cannot be written")
                    return
        self._blocked = ""

    def _publish(self) -> bool:
        """Put the trust bundle there when it has changed; False when that is not possible."""
        bundle = self._bundle_pem()
        if bundle != self._published:
            try:
                write_private(self._folder / BUNDLE_FILE, bundle)
            except OSError:
                self._say_once("the enrolment folder cannot be written")
                return False
            self._published = bundle
        return True

    def _take(self, name: str) -> None:
        claimed = self._folder / f".{name}.csr.claimed"
        try:
            (self._folder / f"{name}.csr").rename(claimed)
        except FileNotFoundError:
            if not claimed.is_symlink() and not claimed.exists():
                return
        except (NotADirectoryError, IsADirectoryError):
            _discard(claimed)
            return
        identity = who_enrols(name, self._trust_domain)
        try:
            if identity is None:
                raise _refusal("is not named after anybody who enrols here")
            request = parse_pem_request(read_claimed(claimed, os.geteuid()))
            issued = self._issue(identity, request)
        except SealwardError as error:
            if error.code is Code.UNAVAILABLE:
                raise
            self._refuse(identity, error)
            _discard(claimed)
            return
        self._recorder.record(
            "keys.certificate",
            "ok",
            code=Code.OK.name,
            target=identity.uri,
            **about_actor(identity),
        )
        write_private(self._folder / BUNDLE_FILE, self._bundle_pem())
        write_private(self._folder / f"{name}.crt", issued.chain_pem)
        claimed.unlink(missing_ok=True)
        self._log.info("certificate.issued", identity=identity.uri, not_after=issued.not_after)

    def _refuse(self, identity: Identity | None, error: SealwardError) -> None:
        # The file's name is text from outside: it is told only where it is one of ours.
        uri = identity.uri if identity is not None else "unknown"
        stands_for = self._limit.admit(uri)
        if not stands_for:
            return
        self._log.warning("enrolment.refused", identity=uri, reason=error.message)
        self._recorder.record(
            "keys.certificate",
            "denied",
            code=error.code.name,
            reason=error.reason.name,
            count=stands_for,
            **(about_actor(identity) if identity is not None else {}),
        )

    def _say_once(self, reason: str) -> None:
        if reason != self._blocked:
            self._blocked = reason
            self._log.error("enrolment.blocked", reason=reason)

    def _run(self) -> None:
        while not self._stop.wait(_BLOCKED_SECONDS if self._blocked else _POLL_SECONDS):
            self.poll()


def _refusal(problem: str) -> SealwardError:
    return SealwardError(Reason.CERTIFICATE_REQUEST_INVALID, f"the request {problem}")


def _discard(path: Path) -> None:
    """Remove a request; a folder in its place is moved aside, whatever is in it."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f".refused-{secrets.token_hex(8)}"))
    else:
        path.unlink(missing_ok=True)
