"""What several rows ask: predictions with made-up values, events and their records, the policy."""

from __future__ import annotations

import base64
import hmac
import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from sealward.api.audit.v1 import audit_pb2
from sealward.api.gateway.v1 import policy_pb2
from sealward.api.inference.v1 import inference_pb2
from sealward.api.oip.v2.open_inference_pb2 import ModelInferRequest
from sealward.check.deployment import Deployment, Person, Reply
from sealward.check.row import NotTestable
from sealward.evidence.event import read_span

AUDIT = "/sealward.api.audit.v1.AuditService/"
REVIEW = "/sealward.api.audit.v1.ReviewService/"
LOGS = "/sealward.api.audit.v1.LogAdminService/"
INFER = "/inference.GRPCInferenceService/ModelInfer"
GATEWAY = "/sealward.api.gateway.v1."
KEYS = "/sealward.api.keys.v1."
WAIT_SECONDS = 10.0
WRONG = "wrong horse battery"
"""A password that is nobody's."""

_FLOATS = {"FP16", "FP32", "FP64", "BF16"}
_INTS = {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
_CONTENTS = {
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def asked(deployment: Deployment, service: str, method: str, message: Message) -> Reply:
    """Make a call of the administrator; raise NotTestable when it is not answered."""
    reply = deployment.call(service, method, message.SerializeToString())
    if not reply.ok:
        name = method.rpartition("/")[2]
        raise NotTestable(f"{service} did not answer {name}: {reply.said}")
    return reply


# --- models and predictions ------------------------------------------------------------------


def models(deployment: Deployment) -> list[inference_pb2.Model]:
    """Return the models that are ready; raise NotTestable when there is none."""
    reply = asked(
        deployment, "inference", "/sealward.api.inference.v1.InferenceService/ListModels",
        inference_pb2.ListModelsRequest(),
    )  # fmt: skip
    found = inference_pb2.ListModelsResponse.FromString(reply.body).models
    ready = [m for m in found if m.state == inference_pb2.MODEL_STATE_READY]
    if not ready:
        raise NotTestable("no model is ready")
    return ready


def prediction(model: inference_pb2.Model) -> ModelInferRequest:
    """Return a request with one row of values in the middle of what the model declares."""
    made = ModelInferRequest(model_name=model.name)
    for spec in json.loads(model.manifest_json)["inputs"]:
        if spec["datatype"] not in _CONTENTS:
            raise NotTestable(f"no values are made up for datatype {spec['datatype']}")
        shape = [1 if size == -1 else size for size in spec["shape"]]
        count = 1
        for size in shape:
            count *= size
        fields = spec.get("fields") or []
        columns = [_middle(spec["datatype"], field) for field in fields] or [
            _middle(spec["datatype"], {})
        ]
        tensor = made.inputs.add(name=spec["name"], datatype=spec["datatype"], shape=shape)
        getattr(tensor.contents, _CONTENTS[spec["datatype"]]).extend(
            columns[at % len(columns)] for at in range(count)
        )
    return made


def _middle(datatype: str, field: Mapping[str, Any]) -> Any:
    low, high = field.get("minimum"), field.get("maximum")
    ends = [float(end) for end in (low, high) if end is not None] or [0.0]
    middle = sum(ends) / len(ends)
    if datatype in _FLOATS:
        return middle
    if datatype in _INTS:
        return int(middle)
    return False if datatype == "BOOL" else b"0"


def infer(
    deployment: Deployment,
    who: Person,
    message: ModelInferRequest,
    *,
    purpose: str = "",
    patient: str = "",
    **options: Any,
) -> Reply:
    """Ask a model as a person."""
    metadata = [("sealward-purpose", purpose)] if purpose else []
    metadata += [("sealward-patient", patient)] if patient else []
    body = message.SerializeToString()
    return deployment.call("gateway", INFER, body, who=who, metadata=metadata, **options)


# --- the record ------------------------------------------------------------------------------


def events(deployment: Deployment, **filters: Any) -> Sequence[audit_pb2.EventSummary]:
    """Return rows of the index, newest first."""
    request = audit_pb2.QueryEventsRequest(**filters)
    reply = asked(deployment, "audit", f"{AUDIT}QueryEvents", request)
    return audit_pb2.QueryEventsResponse.FromString(reply.body).events


def record(deployment: Deployment, event_id: bytes | str) -> Mapping[str, Any]:
    """Return the attributes of an opened event."""
    key = bytes.fromhex(event_id.replace("-", "")) if isinstance(event_id, str) else event_id
    reply = asked(deployment, "audit", f"{AUDIT}GetEvent", audit_pb2.GetEventRequest(event_id=key))
    return read_span(audit_pb2.GetEventResponse.FromString(reply.body).span).attributes


def until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
    """Wait until something holds; return whether it did within the time."""
    ends = time.monotonic() + seconds
    pause = 0.02
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(pause)
        pause = min(0.5, pause * 1.5)
    return True


def totp(secret: str, step: int) -> str:
    """Return the one-time password of a step of 30 s (RFC 6238, SHA-1, six digits)."""
    mac = hmac.digest(base64.b32decode(secret), struct.pack(">Q", step), "sha1")
    at = mac[-1] & 0xF
    return f"{(int.from_bytes(mac[at : at + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06d}"


# --- the policy ------------------------------------------------------------------------------


def question(
    person: Person, rpc: str, model: str = "", purpose: str = ""
) -> policy_pb2.PolicyQuestion:
    """Return what a call of a person asks of the policy."""
    return policy_pb2.PolicyQuestion(
        roles=person.roles, rpc=rpc, model=model, purpose=purpose, actor=person.name, kind="user",
        second_factor=person.proven, multi_factor=person.proven,
    )  # fmt: skip


def decided(
    deployment: Deployment, questions: Sequence[policy_pb2.PolicyQuestion]
) -> list[policy_pb2.PolicyResult]:
    """Return how the policy set in force decides; as many answers as questions."""
    request = policy_pb2.TestPolicyRequest(
        cases=[policy_pb2.PolicyCase(question=question) for question in questions]
    )
    reply = asked(deployment, "gateway", f"{GATEWAY}PolicyService/TestPolicy", request)
    return list(policy_pb2.TestPolicyResponse.FromString(reply.body).results)
