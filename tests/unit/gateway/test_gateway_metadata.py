"""Request metadata: what is read, what is refused, what is ignored."""

import pytest

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.metadata import bearer_token, read_headers
from services.gateway.purposes import purpose_of
from services.gateway.session import new_token

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_everything_known_is_read_and_foreign_keys_are_ignored() -> None:
    headers = read_headers(
        {
            "sealward-purpose": "TREAT",
            "sealward-patient": "Patient/123",
            "sealward-seq": "42",
            "traceparent": TRACE,
            "x-role": "security-admin",
        }
    )
    assert (headers.purpose, headers.patient, headers.seq) == ("TREAT", "Patient/123", 42)
    assert headers.parent is not None
    assert headers.parent.span_id.hex() == "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("sealward-purpose", "treat", Reason.PURPOSE_UNKNOWN),
        ("sealward-purpose", "", Reason.PURPOSE_UNKNOWN),
        ("sealward-purpose", "CURIOSITY", Reason.PURPOSE_UNKNOWN),
        ("sealward-patient", "", Reason.METADATA_INVALID),
        ("sealward-patient", "p" * 129, Reason.METADATA_INVALID),
        ("sealward-patient", b"p", Reason.METADATA_INVALID),
        ("sealward-patient", "a\x7f", Reason.METADATA_INVALID),
        ("sealward-seq", "-1", Reason.METADATA_INVALID),
        ("sealward-seq", "01", Reason.METADATA_INVALID),
        ("sealward-seq", "٣", Reason.METADATA_INVALID),
        ("sealward-seq", str(2**63), Reason.METADATA_INVALID),
        ("sealward-role", "x", Reason.METADATA_UNKNOWN),
        ("sealward-patient-bin", b"x", Reason.METADATA_UNKNOWN),
        ("sealward-idempotency-key", "k", Reason.NOT_SUPPORTED),
    ],
)
def test_what_is_not_of_its_form_is_refused_without_its_value(
    key: str, value: str | bytes, reason: Reason
) -> None:
    with pytest.raises(SealwardError) as caught:
        read_headers({key: value})
    assert caught.value.reason is reason
    assert len(value) < 4 or str(value) not in caught.value.message


def test_the_largest_seq_is_taken() -> None:
    assert read_headers({"sealward-seq": str(2**63 - 1)}).seq == 2**63 - 1


def test_a_token_is_read_from_its_header_only() -> None:
    token = new_token()
    assert bearer_token({"authorization": f"Bearer {token}"}) == token
    assert bearer_token({"authorization": f"bearer {token}"}) == token


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.SESSION_MISSING),
        ("", Reason.SESSION_MISSING),
        (b"Bearer x", Reason.SESSION_MISSING),
        ("Basic " + "a" * 43, Reason.SESSION_MISSING),
        ("Bearer", Reason.SESSION_INVALID),
        ("Bearer " + "a" * 42, Reason.SESSION_INVALID),
        ("Bearer  " + "a" * 43, Reason.SESSION_INVALID),
        ("Bearer " + "=" * 43, Reason.SESSION_INVALID),
    ],
)
def test_bad_tokens(value: str | bytes | None, reason: Reason) -> None:
    with pytest.raises(SealwardError) as caught:
        bearer_token({} if value is None else {"authorization": value})
    assert caught.value.reason is reason


def test_the_default_purpose_comes_from_the_role() -> None:
    assert purpose_of("", ["clinician"]) == "TREAT"
    assert purpose_of("", ["break-glass"]) == "ETREAT"
    assert purpose_of("", ["break-glass", "clinician"]) == "TREAT"
    assert purpose_of("HOPERAT", ["operator"]) == "HOPERAT"


@pytest.mark.parametrize("roles", [["service"], [], ["operator", "break-glass"]])
def test_without_one_default_the_purpose_has_to_be_named(roles: list[str]) -> None:
    with pytest.raises(SealwardError) as caught:
        purpose_of("", roles)
    assert caught.value.reason is Reason.PURPOSE_REQUIRED
