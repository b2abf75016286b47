"""Inputs that a model does not declare: it never sees them, and who asked is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealward.api.inference.v1.inference_pb2 import InferenceRecord
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from sealward.kit.reasons import Reason
from services.inference.answers import DROPPED_PARAMETER, Encoder
from services.inference.tensors import Decoder
from services.inference.undeclared import KNOWN_NAMES, Dropped, dropped
from tests.support.inference_models import doubling_package, opened_model, refusal
from tests.support.inference_requests import infer_request, output_of

MODEL = opened_model(doubling_package())
WIDTH = MODEL.manifest.inputs[0].shape[1]
NAME = MODEL.manifest.inputs[0].name


def asked(*, raw: bool, extra: dict[str, bytes], first: bool = False) -> ModelInferRequest:
    """A right request with inputs that nobody declared, behind the declared one or before it."""
    right = infer_request(range(WIDTH), shape=[1, WIDTH], raw=raw, name=NAME)
    made = ModelInferRequest(model_name=right.model_name)
    others = ModelInferRequest()
    for name, value in extra.items():
        tensor = others.inputs.add(name=name, datatype="BYTES", shape=[1])
        if raw:
            others.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
        else:
            tensor.contents.bytes_contents.append(value)
    for part in (others, right) if first else (right, others):
        made.inputs.extend(part.inputs)
        made.raw_input_contents.extend(part.raw_input_contents)
    return made


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_the_answer_is_that_of_the_declared_inputs_and_says_so(raw: bool, first: bool) -> None:
    extra = {"patient_name": b"Ann Example", "ZZ-Ann": b"1", "PID": b"x"}
    decoded = MODEL.decoder.decode(asked(raw=raw, extra=extra, first=first))
    alone = MODEL.decoder.decode(asked(raw=raw, extra={}))
    assert [a.tobytes() for a in decoded.arrays] == [a.tobytes() for a in alone.arrays]
    assert decoded.dropped == Dropped(3, ("patient_name", "pid"))
    assert alone.dropped is None

    outputs = MODEL.engine.run(decoded.arrays, decoded.rows)
    body = MODEL.encoder.answer(decoded, outputs)
    response = ModelInferResponse.FromString(body)
    assert response.parameters[DROPPED_PARAMETER].int64_param == 3
    plain = ModelInferResponse.FromString(MODEL.encoder.answer(alone, outputs))
    assert DROPPED_PARAMETER not in plain.parameters
    name = MODEL.manifest.outputs[0].name
    assert output_of(response, name) == output_of(plain, name)
    assert b"Ann" not in body
    record = InferenceRecord.FromString(MODEL.encoder.record(1, 1, 0, decoded.dropped))
    assert (record.inputs_dropped, list(record.dropped_names)) == (3, ["patient_name", "pid"])


def test_a_mistyped_name_is_an_error_and_no_dropped_input() -> None:
    request = asked(raw=True, extra={})
    request.inputs[0].name = f"{NAME}s"
    error = refusal(MODEL.decoder.decode, request)
    assert (error.reason, error.field) == (Reason.INPUT_NAME, "inputs[0].name")
    assert NAME in error.message


def test_a_strict_site_refuses_them() -> None:
    strict = Decoder(MODEL.manifest, refuse_undeclared=True)
    assert strict.decode(asked(raw=True, extra={})).dropped is None
    error = refusal(strict.decode, asked(raw=True, extra={"ssn": b"1"}))
    assert (error.reason, error.field) == (Reason.INPUT_NAME, "inputs[1].name")
    assert "ssn" not in error.message


def test_what_is_wrong_with_declared_inputs_is_still_refused() -> None:
    request = asked(raw=True, extra={"ssn": b"1"})
    request.raw_input_contents.pop()
    assert refusal(MODEL.decoder.decode, request).field == "raw_input_contents"
    request = asked(raw=True, extra={"ssn": b"1"})
    request.inputs[0].datatype = "FP64"
    assert refusal(MODEL.decoder.decode, request).reason is Reason.INPUT_DATATYPE


@given(st.lists(st.text(max_size=80), max_size=40))
def test_only_known_names_are_repeated_and_they_are_few(names: list[str]) -> None:
    found = dropped(names)
    assert found.count == len(names)
    assert set(found.names) <= KNOWN_NAMES
    assert len(found.names) <= 16
    assert sum(map(len, found.names)) <= 192


def test_all_known_names_at_once_still_fit_an_entry() -> None:
    found = dropped(sorted(KNOWN_NAMES) * 3)
    assert found.count == 3 * len(KNOWN_NAMES)
    assert 0 < sum(map(len, found.names)) <= 192


def test_the_record_of_a_plain_call_has_not_changed() -> None:
    encoder = Encoder(MODEL.manifest, "rt")
    assert encoder.record(1, 1, 0) == encoder.record(1, 1, 0, None)
    assert InferenceRecord.FromString(encoder.record(1, 1, 0)).inputs_dropped == 0
