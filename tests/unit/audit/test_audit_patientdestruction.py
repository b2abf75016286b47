"""Who is meant by the event that names a patient, and what has to be kept about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.identity import Identity, parse_identity
from sealward.kit.reasons import Reason
from sealward.kit.recorder import new_event_id
from tests.support.audit_patient_killed import GONE, STAYS, destruction
from tests.support.audit_shards import Logs, opened
from tests.support.audit_suite import GATEWAY, entry_bytes, span_bytes

AUDIT = parse_identity("spiffe://sealward.local/service/audit")


def named(logs: Logs, identity: Identity = AUDIT, event: str = "audit.patient-name") -> str:
    """Append the event that names a patient; return the resource."""
    event_id = new_event_id()
    logs.shards.append([logs.maker.own(event_id, span_bytes(event), identity, GONE)])
    return f"patient/{event_id.hex()}"


def refused(call: object, *arguments: str) -> Reason:
    with pytest.raises(SealwardError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.reason


def test_only_an_event_of_audit_itself_names_a_patient(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        logs.append(entry_bytes(patient=GONE))
        work = destruction(logs)
        assert work.reference("default", named(logs)) == GONE
        for resource in (
            named(logs, GATEWAY),
            named(logs, event="audit.query"),
            f"patient/{'0' * 32}",
        ):
            assert refused(work.reference, "default", resource) is Reason.NOT_FOUND
        assert refused(work.reference, "default", "patient/MRN-1") is Reason.FIELD_INVALID
        # In another tenant's logs nobody is named by it.
        assert refused(work.reference, "north", named(logs)) is Reason.NOT_FOUND


def test_what_is_young_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as logs:
        logs.append(entry_bytes(patient=GONE), entry_bytes(patient=STAYS))
        resource = named(logs)
        assert refused(destruction(logs, 6).check, "default", resource) is Reason.DESTRUCTION_HELD
        work = destruction(logs, 0)
        work.check("default", resource)
        assert work.count("default", GONE) == (2, 0)
        assert work.destroy("default", GONE) == 1
        assert work.count("default", GONE) == (0, 0)
        assert work.count("default", STAYS) == (1, 0)
        # Done already: nobody is meant any more, and nothing stands against doing it again.
        assert work.reference("default", resource) == ""
        work.check("default", resource)
        assert work.destroy("default", "") == 0
