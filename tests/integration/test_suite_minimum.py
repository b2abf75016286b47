"""Minimum necessary: what a model does not declare, what a role may not see."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from sealward.api.oip.v2.open_inference_pb2 import ModelInferResponse
from sealward.cli.errors import Exit
from sealward.cli.infer import Answer
from sealward.client import Client
from sealward.tlog.errors import ReceiptError
from sealward.tlog.leaf import Outcome
from sealward.tlog.note import parse_vkeys
from sealward.tlog.receipt import verify_receipt
from tests.support.suites import RunningSuite, heldout, request, rest_json


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


@pytest.mark.parametrize("form", ["csv", "fhir"])
def test_a_deidentified_export(suite: RunningSuite, tmp_path: Path, form: str) -> None:
    name = suite.user("mina")
    for patient in ("MRN-7781", "MRN-7782", "MRN-7781"):
        answer = suite.ask(name, patient=patient)
    options = ("--format", form, "--model", "breast-cancer", "--deidentified")
    first, second = tmp_path / "one", tmp_path / "two"
    made = suite.sealward("audit", "export", *options, "--user", name, "-o", str(first))
    suite.sealward("audit", "export", *options, "--user", name, "-o", str(second))
    report = made["deidentification"]
    assert report["events"] == made["events"] >= 3
    assert report["codes"]["patient"] >= 2
    assert report["refused"] == []
    text = first.read_text()
    assert "breast-cancer" in text
    pseudonym = suite.event(answer.proof.event_id)["span"]["attributes"]["sealward.patient"]
    for kept_back in ("MRN-77", name, pseudonym, answer.proof.event_id, "sealward.local"):
        assert kept_back not in text
    codes = set(re.findall(r"\b[0-9a-f]{16}\b", text))
    assert codes
    assert codes.isdisjoint(re.findall(r"\b[0-9a-f]{16}\b", second.read_text()))
    recorded = suite.event(made["export_event_id"])["span"]["attributes"]
    assert f"{form} deidentified" in recorded["sealward.target"]
    for wrong in (("--identified",), ("--patient", "MRN-7781"), ("--format", "bundle")):
        assert suite.sealward_any(
            "audit", "export", *options, *wrong, "-o", str(tmp_path / "no")
        ) == int(Exit.USAGE)


def test_codes_of_a_project_lead_back_for_the_privacy_officer_alone(
    suite: RunningSuite, tmp_path: Path
) -> None:
    name, pia = suite.user("mina"), suite.user("min-pia", "privacy-officer")
    pseudonym = suite.event(suite.ask(name, patient="MRN-9981").proof.event_id)["span"][
        "attributes"
    ]["sealward.patient"]

    def codes(project: str) -> set[str]:
        file = tmp_path / "out.csv"
        made = suite.sealward(
            "audit", "export", "--deidentified", "--project", project, "--format", "csv",
            "--user", name, "--type", "inference.predict", "-o", str(file),
        )  # fmt: skip
        assert made["deidentification"]["project"] == project
        with file.open(newline="") as lines:
            return {row["patient"] for row in csv.DictReader(lines)} - {""}

    first = codes("registry")
    assert first
    assert codes("registry") == first
    assert codes("other-study").isdisjoint(first)

    back = {}
    for code in first:
        found = suite.sealward("deid", "reidentify", "registry", code, "--as", pia)
        back[found["patient"]] = found
    assert back["MRN-9981"]["identifier"] == pseudonym
    code = back["MRN-9981"]["code"]
    listed = suite.sealward("audit", "query", "--patient", "MRN-9981", "--type", "deid.reidentify")[
        "events"
    ]
    assert [row["outcome"] for row in listed] == ["ok"]
    for who in ((), ("--as", name), ("--as", suite.user("min-sam", "security-admin"))):
        refused = suite.sealward("deid", "reidentify", "registry", code, *who, code=1)
        assert refused["error"]["reason"] in ("IDENTITY_FORBIDDEN", "POLICY_DENIED")
        assert who or refused["error"]["advice"] == "as a privacy-officer: --as NAME"
    error = suite.sealward("deid", "reidentify", "other-study", code, "--as", pia, code=1)
    assert error["error"]["reason"] == "NOT_FOUND"

    table = next(suite.suite.root.rglob("deid.db"))
    for file in table.parent.glob("deid.db*"):
        assert pseudonym.encode() not in file.read_bytes()
    suite.sealward("deid", "drop", "registry", code=2)
    dropped = suite.sealward("deid", "drop", "registry", "--confirm", "registry")
    assert dropped["codes"] >= len(first)
    gone = suite.sealward("deid", "reidentify", "registry", code, "--as", pia, code=1)
    assert gone["error"]["reason"] == "NOT_FOUND"
    for file in table.parent.glob("deid.db*"):
        assert code.encode() not in file.read_bytes()
    assert codes("registry").isdisjoint(first)


def test_the_sdk_and_the_command_say_what_was_dropped(suite: RunningSuite, tmp_path: Path) -> None:
    name = suite.user("mina")
    rows = np.array(heldout("breast-cancer")[:1], np.float32)
    with Client.from_profile(suite.suite.clients / name) as client:
        plain = client.infer("breast-cancer", rows)
        more = client.infer("breast-cancer", {"measurements": rows, "ssn": np.array([1.0])})
    assert (plain.inputs_dropped, more.inputs_dropped, more.withheld) == (0, 1, ())
    assert more.outputs.keys() == plain.outputs.keys()
    asked = json.loads(rest_json())
    asked["inputs"].append({"name": "ssn", "datatype": "FP32", "shape": [1], "data": [1.0]})
    file = tmp_path / "in.json"
    file.write_text(json.dumps(asked))
    found = suite.sealward("infer", "breast-cancer", "--input", str(file), "--user", name)
    assert "sealward_inputs_dropped" in found["parameters"]
