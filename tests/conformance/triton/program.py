"""Runs inside the environment of tritonclient; see test_tritonclient.py.

python program.py {plain|attached|foreign-key} PROFILE MODEL INPUT < rows.json > answer.json
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import google.protobuf
import numpy as np
from tritonclient.grpc import (  # type: ignore[import-not-found]
    InferenceServerClient,
    InferInput,
)
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]

from sealward.client import TrustError, attach


def connect(profile: Path) -> Any:
    return InferenceServerClient(
        json.loads((profile / "profile.json").read_text())["gateway"],
        ssl=True,
        root_certificates=str(profile / "ca.pem"),
        private_key=str(profile / "key.pem"),
        certificate_chain=str(profile / "cert.pem"),
    )


def tensor(name: str, rows: Any) -> Any:
    values = np.array(rows, np.float32)
    made = InferInput(name, list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return made


def outputs(result: Any) -> dict[str, Any]:
    return {
        output.name: result.as_numpy(output.name).tolist()
        for output in result.get_response().outputs
    }


def plain(client: Any, profile: Path, model: str, inputs: list[Any]) -> dict[str, Any]:
    """The stock client with nothing but the token in its metadata."""
    session = {"authorization": f"Bearer {(profile / 'session').read_text()}"}
    declared = client.get_model_metadata(model, headers=session, as_json=True)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model, headers=session),
        "server": client.get_server_metadata(headers=session, as_json=True),
        "declared": [tensor["name"] for tensor in declared["inputs"]],
        "outputs": outputs(client.infer(model, inputs, headers=session, client_timeout=20)),
        "without_token": refusal(lambda: client.infer(model, inputs)),
    }


def attached(client: Any, profile: Path, model: str, inputs: list[Any]) -> dict[str, Any]:
    """The same client with its receipts verified."""
    proofs: list[Any] = []
    attach(client, profile, patient="mrn-triton", on_verified=proofs.append)
    answers = [outputs(client.infer(model, inputs, request_id=str(n))) for n in range(3)]
    done: list[threading.Event] = []
    given: list[Any] = []
    for _ in range(8):
        event = threading.Event()

        def called(result: Any, error: Any, event: threading.Event = event) -> None:
            given.append(outputs(result) if error is None else str(error))
            event.set()

        client.async_infer(model, inputs, called)
        done.append(event)
    assert all(event.wait(30) for event in done)
    return {
        "outputs": answers[0],
        "all_alike": all(answer == answers[0] for answer in (*answers, *given)),
        "events": [proof.event_id for proof in proofs],
        "indexes": [proof.log_index for proof in proofs],
        "digests": sorted({proof.model_digest for proof in proofs}),
        "model_ready": client.is_model_ready(model),
        "unknown_model": refusal(lambda: client.infer("no-such-model", inputs)),
    }


def foreign_key(client: Any, profile: Path, model: str, inputs: list[Any]) -> dict[str, Any]:
    """A log that is not signed by the key which the profile trusts."""
    attach(client, profile)
    raised = ""
    try:
        client.infer(model, inputs)
    except TrustError as error:
        raised = type(error).__name__
    event = threading.Event()
    said: list[str] = []

    def called(result: Any, error: Any) -> None:
        said.append("answered" if result is not None else error.status())
        event.set()

    client.async_infer(model, inputs, called)
    assert event.wait(30)
    return {"raised": raised, "called_back": said[0]}


def refusal(call: Any) -> str:
    try:
        call()
    except InferenceServerException as error:
        return str(error.status())
    return "answered"


def main() -> None:
    mode, folder, model, name = sys.argv[1:]
    profile = Path(folder)
    run = {"plain": plain, "attached": attached, "foreign-key": foreign_key}[mode]
    client = connect(profile)
    try:
        answer = run(client, profile, model, [tensor(name, json.load(sys.stdin))])
    finally:
        client.close()
    answer["protobuf"] = google.protobuf.__version__
    answer["own_stubs"] = [module for module in sys.modules if "open_inference" in module]
    answer["sealward"] = str(Path(sys.modules["sealward"].__path__[0]))
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
