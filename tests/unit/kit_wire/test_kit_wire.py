"""The byte-level reader and writer, by hand-made bytes."""

import pytest

from sealward.api.oip.v2 import open_inference_pb2 as oip
from sealward.kit import wire


def test_oip_head_reads_fields_in_any_order_and_the_last_one_counts() -> None:
    message = (
        wire.bytes_field(7, b"\x00" * 300)
        + wire.string_field(3, "id-1")
        + wire.string_field(1, "first")
        + wire.string_field(2, "1")
        + wire.string_field(1, "second")
    )
    assert wire.oip_head(message) == ("second", "1", "id-1")
    assert oip.ModelInferRequest.FromString(message).model_name == "second"


def test_oip_head_takes_a_name_of_another_wire_type_for_unknown() -> None:
    message = wire.string_field(1, "name") + wire.varint_field(1, 5) + wire.fixed64_field(1, 5)
    assert wire.oip_head(message) == ("name", "", "")
    assert oip.ModelInferRequest.FromString(message).model_name == "name"


def test_oip_head_does_not_look_into_groups_or_nested_messages() -> None:
    inner = wire.string_field(1, "inner")
    group = wire.tag(9, 3) + inner + wire.tag(9, 4)
    message = wire.string_field(1, "outer") + wire.bytes_field(5, inner) + group
    assert wire.oip_head(message) == ("outer", "", "")
    assert oip.ModelInferRequest.FromString(message).model_name == "outer"


@pytest.mark.parametrize(
    "filler",
    [b"\x10\x00" * 5000, b"\x4b" + b"\x10\x00" * 5000 + b"\x4c", b"\x4b\x4c" * 3000],
    ids=["fields", "in a group", "groups"],
)
def test_oip_head_gives_up_on_a_message_of_tiny_fields(filler: bytes) -> None:
    message = wire.string_field(1, "name") + filler
    assert oip.ModelInferRequest.FromString(message).model_name == "name"
    with pytest.raises(wire.WireError, match="too many fields"):
        wire.oip_head(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x05abc",  # shorter than it says
        b"\x0a",  # no length
        b"\x0a\xff",  # half a length
        b"\x00\x00",  # field number 0
        b"\x0c",  # a group ends that never began
        b"\x0b\x14",  # a group ends with another number
        b"\x0b",  # a group never ends
        b"\x0e\x00",  # wire type 6
        b"\x0f\x00",  # wire type 7
        b"\x08" + b"\xff" * 10 + b"\x01",  # varint of eleven bytes
        b"\x8a\x80\x80\x80\x80\x00\x00",  # tag of six bytes
        b"\x09\x00\x00",  # half a fixed64
        b"\x0d\x00",  # half a fixed32
        b"\x0a\x01\xff",  # not UTF-8
        b"\x0b" * 101 + b"\x0c" * 101,  # too deep
    ],
)
def test_bad_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.oip_head(message)


def test_string_parameter_of_a_response() -> None:
    response = oip.ModelInferResponse(model_name="m")
    response.parameters["other"].string_param = "no"
    response.parameters["rows"].int64_param = 5
    response.parameters["sealward_model_digest"].string_param = "ab" * 32
    body = response.SerializeToString()
    assert wire.oip_string_parameter(body, "sealward_model_digest") == "ab" * 32
    assert wire.oip_string_parameter(body, "rows") is None
    assert wire.oip_string_parameter(body, "absent") is None


def test_fields_give_values_by_wire_type() -> None:
    message = (
        wire.varint_field(1, 300)
        + wire.fixed64_field(2, 2**63)
        + wire.bytes_field(3, b"abc")
        + wire.fixed32_field(4, 7)
    )
    assert list(wire.fields(message)) == [(1, 0, 300), (2, 1, 2**63), (3, 2, b"abc"), (4, 5, 7)]
