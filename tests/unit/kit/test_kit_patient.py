"""One form of patient references, for who takes them and for who looks them up."""

from __future__ import annotations

import pytest

from sealward.api.audit.v1.audit_pb2 import QueryEventsRequest
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.queries import check_patient, check_query
from services.gateway.metadata import check_patient_reference, read_headers

GOOD = ("MRN-1", "urn:oid:1.2.3|4711", "=1+1", "~", "7" * 128)
BAD = ("MRN-1 ", " MRN-1", "MRN 1", "MRN-1\n", "M\u00fcller", "MRN\u20101", "7" * 129)


@pytest.mark.parametrize("reference", GOOD)
def test_what_a_call_may_name_is_looked_up(reference: str) -> None:
    assert read_headers({"sealward-patient": reference}).patient == reference
    check_patient_reference(reference, "patient")
    assert check_patient(reference) == reference
    check_query(QueryEventsRequest(patient=reference))


@pytest.mark.parametrize("reference", BAD)
def test_what_no_call_can_name_is_refused_and_not_repeated(reference: str) -> None:
    with pytest.raises(SealwardError) as named:
        read_headers({"sealward-patient": reference})
    with pytest.raises(SealwardError) as asked:
        check_query(QueryEventsRequest(patient=reference))
    assert (named.value.reason, named.value.field) == (Reason.METADATA_INVALID, "sealward-patient")
    assert (asked.value.reason, asked.value.field) == (Reason.FIELD_INVALID, "patient")
    assert "without spaces" in asked.value.message
    assert reference not in asked.value.message


def test_an_empty_reference_is_none_and_not_everybody() -> None:
    with pytest.raises(SealwardError):
        check_patient("")
    with pytest.raises(SealwardError):
        read_headers({"sealward-patient": ""})
    check_query(QueryEventsRequest())
