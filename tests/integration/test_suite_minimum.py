"""Minimum necessary: what a model does not declare, what a role may not see."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.cli.infer import Answer
from sealward.tlog.errors import ReceiptError
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import verify_receipt
from tests.support.suites import RunningSuite, request


def test_undeclared_inputs_are_dropped_recorded_and_told(suite: RunningSuite) -> None:
    name = suite.user("mina")
    alone = ModelInferResponse.FromString(suite.ask(name).response)
    asked = request()
    for extra in ("PID-5", "patient name", "some-own-thing"):
        tensor = asked.inputs.add(name=extra, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"Doe^Jane")
    answer = suite.ask(name, asked)
    response = ModelInferResponse.FromString(answer.response)
    assert response.parameters["sealward_inputs_dropped"].int64_param == 3
    assert response.outputs == alone.outputs

    # The receipt is about the bytes that were sent, the dropped ones included.
    verify(suite, answer)
    with pytest.raises(ReceiptError):
        verify(suite, replace(answer, request=request().SerializeToString()))
    shown = suite.event(answer.proof.event_id)["span"]["attributes"]
    assert shown["sealward.inputs.dropped"] == 3
    assert shown["sealward.inputs.dropped.names"] == ["patient_name"]
    assert "Doe" not in str(shown)
    assert "some-own-thing" not in str(shown)


def verify(suite: RunningSuite, answer: Answer) -> None:
    """Check the receipt against the exact bytes, as an outsider would."""
    verify_receipt(
        answer.proof.receipt,
        vkeys=parse_vkeys(suite.suite.vkey_file.read_text()),
        request_digest=sha256(answer.request).digest(),
        response_digest=sha256(answer.response).digest(),
        model_digest=bytes.fromhex(answer.proof.model_digest),
        outcome=Outcome.OK,
    )
