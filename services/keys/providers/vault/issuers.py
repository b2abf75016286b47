"""The authorities in a PKI engine, and how one is replaced by the next.

The trust bundle is every issuer of the engine that has a key there and has not expired. An issuer
is trusted itself, whatever signed it: a hospital's root that comes along in a chain is not. The
engine's default issuer signs; one that is announced is called `sealward-next-N`, and `sealward-N`
once it signs. Every other one signs no more.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.unreadable import X509_ERRORS
from services.keys.authority import Clock
from services.keys.providers.base import AuthorityState
from services.keys.providers.vault.api import Api
from services.keys.providers.vault.session import VaultSession
from services.keys.providers.vault.shredder import Shredder
from services.keys.providers.vault.troubles import RefusedError
from services.keys.providers.vault.wire import Answer

LIFE = "87600h"
_NAME = re.compile(r"sealward-(next-)?([1-9][0-9]{0,8})")
_MOST = 16
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer of the engine."""

    id: str
    name: str
    key_id: str
    default: bool
    certificate: x509.Certificate

    @property
    def number(self) -> int:
        """Its number, 0 for one of somebody else's naming."""
        return _number(self.name)

    @property
    def state(self) -> AuthorityState:
        """Where it stands."""
        if self.default:
            return "issuing"
        return "next" if self.name.startswith("sealward-next-") else "leaving"

    @property
    def age(self) -> tuple[int, float, int]:
        """What issuers are sorted by, oldest first."""
        stage = ("leaving", "issuing", "next").index(self.state)
        return stage, self.certificate.not_valid_before_utc.timestamp(), self.number


class Issuers:
    """The issuers as last read. Thread-safe; methods raise SealwardError KEYSTORE_UNAVAILABLE."""

    def __init__(
        self, session: VaultSession, shredder: Shredder, trust_domain: str, clock: Clock
    ) -> None:
        self._session = session
        self._shredder = shredder
        self._pki = session.config.names.pki
        self._trust_domain = trust_domain
        self._clock = clock
        self._changing = threading.Lock()
        self._found: tuple[Issuer, ...] = ()

    @property
    def issuing(self) -> Issuer:
        """The one that signs."""
        return next(issuer for issuer in self._found if issuer.default)

    def states(self) -> list[tuple[Issuer, AuthorityState]]:
        """The trusted ones, newest first."""
        now = self._clock()
        return [
            (issuer, issuer.state)
            for issuer in reversed(self._found)
            if issuer.key_id and issuer.certificate.not_valid_after_utc > now
        ]

    def read(self) -> None:
        """Ask Vault."""
        try:
            listed: Answer = self._session.api.pki.list_issuers(mount_point=self._pki)
            infos = listed.data.get("key_info")
            if (
                not isinstance(infos, dict)
                or len(infos) > _MOST
                or not all(isinstance(info, dict) for info in infos.values())
            ):
                raise unusable()
            found = tuple(self._issuer(str(name), info) for name, info in infos.items())
        except RefusedError as error:
            if error.status == _NOT_FOUND:
                raise _missing(self._pki) from None
            raise unusable() from None
        if [bool(issuer.key_id) for issuer in found if issuer.default] != [True]:
            raise _missing(self._pki)
        self._found = tuple(sorted(found, key=lambda issuer: issuer.age))

    def refresh(self) -> None:
        """As `read`; where that cannot be done everything stays as it was."""
        try:
            self.read()
        except SealwardError:
            return

    def announce(self) -> None:
        """Make the next one unless there is one."""
        with self._changing:
            self.read()
            if self._next() is None:
                number = max(issuer.number for issuer in self._found) + 1
                made = root(self._trust_domain, number, f"sealward-next-{number}")
                self._do(lambda api: api.adapter.post(generated_in(self._pki), json=made))
                self.read()

    def adopt(self) -> None:
        """Let the next one sign, if there is one."""
        with self._changing:
            self.read()
            issuer = self._next()
            if issuer is None:
                return
            pki, end = self._pki, LEAVES_END_WITH_IT
            kept = {"issuer_name": issuer.name, **end}
            self._do(lambda api: api.pki.update_issuer(issuer.id, kept, mount_point=pki))
            signs = {"default": issuer.id}
            self._do(lambda api: api.adapter.post(f"/v1/{pki}/config/issuers", json=signs))
            # Last: what signs is told by the engine, not by its name.
            named = {"issuer_name": f"sealward-{issuer.number}", **end}
            self._do(lambda api: api.pki.update_issuer(issuer.id, named, mount_point=pki))
            self.read()

    def drop(self) -> None:
        """Destroy those that sign no more; also raises NOT_SUPPORTED."""
        with self._changing:
            self.read()
            # One without a key came along in a chain.
            old = [i for i in self._found if i.state == "leaving" and i.key_id]
            if not old:
                return
            kept = {issuer.key_id for issuer in self._found if issuer not in old}
            newest = max(issuer.number for issuer in self._found)
            self._shredder.drop(
                [issuer.id for issuer in old],
                lambda key, name: key not in kept and 0 < _number(name) <= newest,
            )
            self.read()

    def _next(self) -> Issuer | None:
        return next((issuer for issuer in self._found if issuer.state == "next"), None)

    def _do(self, change: Callable[[Api], object]) -> None:
        try:
            change(self._session.once)
        except RefusedError:
            raise unusable() from None

    def _issuer(self, name: str, info: Mapping[str, Any]) -> Issuer:
        # Not hvac's read_issuer: our policy reads certificates, not how issuers are set.
        found: Answer = self._session.api.adapter.get(f"/v1/{self._pki}/issuer/{name}/json")
        try:
            text = str(found.data.get("certificate"))
            certificate = x509.load_pem_x509_certificate(text.encode())
            public = certificate.public_key()
        except X509_ERRORS:
            raise unusable() from None
        key_id = str(info.get("key_id") or "")
        if key_id and not isinstance(public, ec.EllipticCurvePublicKey):
            # grpcio would refuse it in every handshake.
            raise unusable()
        called = str(info.get("issuer_name") or "")
        return Issuer(name, called, key_id, bool(info.get("is_default")), certificate)


LEAVES_END_WITH_IT = {"leaf_not_after_behavior": "truncate"}
"""A certificate's life ends with its issuer's, where it would be refused else."""


def generated_in(pki: str) -> str:
    """Where an engine makes an authority whose key stays inside; hvac knows the old path alone."""
    return f"/v1/{pki}/issuers/generate/root/internal"


def root(trust_domain: str, number: int, name: str) -> dict[str, Any]:
    """Return what Vault is asked for: a self-signed authority that signs leaves only."""
    return {
        "common_name": f"Sealward {trust_domain}"[:64],
        "issuer_name": name,
        "key_name": f"sealward-{number}",
        "exclude_cn_from_sans": True,
        "key_type": "ec",
        "key_bits": 256,
        "max_path_length": 0,
        "ttl": LIFE,
    }


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found[2]) if found else 0


def _missing(pki: str) -> SealwardError:
    return SealwardError(
        Reason.KEYSTORE_UNAVAILABLE,
        f"there is no CA at {pki}: `sealward vault setup` makes it",
        retry_after=1.0,
    )


def unusable() -> SealwardError:
    """The one error for an answer of PKI that cannot be used."""
    return SealwardError(
        Reason.KEYSTORE_UNAVAILABLE,
        "the CA in Vault gives no certificate for this",
        retry_after=1.0,
    )
