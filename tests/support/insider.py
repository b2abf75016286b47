"""A suite's own certificate authority in the hands of a test: it signs any certificate."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from sealward.kit.tls import Material
from services.keys.keystore import open_or_create
from services.keys.unlock import unlock_source
from tests.conftest import CertificateAuthority
from tests.support.suites import RunningSuite


class Insider(CertificateAuthority):
    """Issues what nobody should have, with the right authority's key. The suite must be down."""

    def __init__(self, suite: RunningSuite) -> None:
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

    def as_(self, path: str, seconds: int = 3600, domain: str = "sealward.local") -> Material:
        """A certificate of `kind/name`."""
        return self.issue(f"spiffe://{domain}/{path}", seconds=seconds)
