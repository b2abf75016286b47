"""TS-01: what travels is encrypted, with TLS 1.3 alone, and a changed byte is noticed."""

from __future__ import annotations

from sealward.check.deployment import SERVICES, Deployment
from sealward.check.row import Notes, Row

_OLD = ("plaintext", "TLS 1.0", "TLS 1.1", "TLS 1.2")


def run(deployment: Deployment, notes: Notes) -> None:
    """Offer every listener less than it takes, and change a byte on the way."""
    for service in SERVICES:
        for kind in ("address", "metrics"):
            if not deployment.dial(service, kind, "right"):
                notes.cannot(f"{service} ({kind}) does not answer in the right way either")
            for way in _OLD:
                if deployment.dial(service, kind, way):
                    notes.fault(f"{service} ({kind}) answers over {way}")
            if deployment.dial(service, kind, "altered"):
                notes.fault(f"{service} ({kind}): an altered byte on the way was taken for good")
    notes.held(f"{2 * len(SERVICES)} listeners refuse: {', '.join(_OLD)}")
    notes.held("a byte that was altered on the way ends each connection without an answer")
    notes.limit("packets were not captured; edges for HL7 and DICOM are not part of this version")


ROW = Row(
    id="TS-01",
    title="Everything that travels is encrypted and its integrity checked, on loopback too",
    current="45 CFR 164.312(e)(1), (e)(2)(i), (e)(2)(ii)",
    nprm="proposed 45 CFR 164.312 (encryption; transmission security)",
    proves="each listener, metrics included, refuses plaintext and TLS before 1.3, and an altered "
    "byte ends the connection",
    not_proven="other programs of the site; the modules are not FIPS-validated (sealward check "
    "--fips)",
    duty="encrypt what leaves Sealward: engines, records, backups, remote access",
    run=run,
    writes=False,
)
