"""A suite's own certificate authority in the hands of a test: it signs any certificate."""

from __future__ import annotations

import json

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from sealward.kit.tls import Material, key_to_pem
from services.keys.keystore import open_or_create
from services.keys.unlock import unlock_source
from tests.conftest import CertificateAuthority
from tests.support.suites import RunningSuite


class Insider(CertificateAuthority):
    """Issues what nobody should have, with the right authority's key. The suite must be down."""

    def __init__(self, suite: RunningSuite) -> None:
        if suite.provider == "vault":
            self._into_vault(suite)
        else:
            self._out_of_the_keystore(suite)

    def _into_vault(self, suite: RunningSuite) -> None:
        """No key comes out of Vault: its administrator puts one more authority in."""
        super().__init__("Sealward insider")
        self.bundle = self.pem + (suite.suite.admin / "ca.pem").read_bytes()
        assert suite.vault is not None
        prefix = json.loads(suite.suite.vault_file.read_bytes())["prefix"]
        bundle = key_to_pem(self.key) + self.pem
        path = f"{prefix}/pki/issuers/import/bundle"
        suite.vault.ask("post", path, {"pem_bundle": bundle.decode()})

    def _out_of_the_keystore(self, suite: RunningSuite) -> None:
        def never(_deployment: str) -> None:
            raise AssertionError("there is no keystore")

        store, _ = open_or_create(
            suite.suite.root / "keys",
            unlock_source(suite.suite.unlock_file),
            never,  # type: ignore[arg-type]
        )
        found = store.content.authorities[store.content.issuing]
        store.close()
        self.key = load_der_private_key(found.key.reveal(), None)  # type: ignore[assignment]
        self.certificate = x509.load_der_x509_certificate(found.certificate)
        self.name = self.certificate.subject
        self.bundle = self.pem

    def as_(self, path: str, seconds: int = 3600, domain: str = "sealward.local") -> Material:
        """A certificate of `kind/name`."""
        return self.issue(f"spiffe://{domain}/{path}", seconds=seconds, bundle=self.bundle)
