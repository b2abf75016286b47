"""Every role × every RPC of the gateway × models × purposes: what is observed is what is written.

The oracle is the plain table of this page, which the policy set of a new deployment has to match;
RPCs come from the descriptors, so one that is added has to be decided about here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import grpc
import pytest

from sealward.api.gateway.v1 import (
    access_pb2,
    deid_pb2,
    destruction_pb2,
    factor_pb2,
    gateway_pb2,
    membership_pb2,
    oidc_pb2,
    policy_pb2,
    quota_pb2,
    review_pb2,
    workload_pb2,
)
from sealward.api.oip.v2 import open_inference_pb2
from sealward.cli.connect import user_channel
from sealward.cli.rpc import error_info
from services.gateway.policy import load_policy
from services.gateway.policy.schema import POLICY_RPCS
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES
from tests.support.suites import RunningSuite, request, running

EVERYBODY = frozenset(ROLES)
STAFF = EVERYBODY - {"break-glass"}
_POLICY = frozenset({"security-admin", "privacy-officer"})
_PEOPLE = frozenset({"security-admin"})
_PRIVACY = frozenset({"privacy-officer"})

ROLES_OF: Mapping[str, frozenset[str]] = {
    "ModelReady": EVERYBODY, "ModelMetadata": EVERYBODY, "ServerMetadata": EVERYBODY,
    "Logout": EVERYBODY, "GetConsistency": EVERYBODY, "GetReceipt": EVERYBODY,
    "BeginWebauthn": EVERYBODY, "ConfirmWebauthn": EVERYBODY, "RemoveWebauthn": EVERYBODY,
    "ListFactors": EVERYBODY, "BeginTotp": EVERYBODY, "ConfirmTotp": EVERYBODY,
    "NewRecoveryCodes": EVERYBODY, "RemoveFactors": EVERYBODY, "StepUp": EVERYBODY,
    "ResetFactors": _PEOPLE,
    "ListSessions": _PEOPLE, "RevokeSessions": _PEOPLE, "CreateUser": _PEOPLE,
    "DisableUser": _PEOPLE, "ListUsers": _PEOPLE, "IssueUserCertificate": _PEOPLE,
    "RegisterClient": _PEOPLE, "ListClients": _PEOPLE, "RotateClientKeys": _PEOPLE,
    "DisableClient": _PEOPLE, "LinkIdentity": _PEOPLE, "UnlinkIdentity": _PEOPLE,
    "ListIdentities": _PEOPLE,
    "SetRoles": _PEOPLE, "UnlockUser": _PEOPLE, "ResetPassword": _PEOPLE, "WatchSession": EVERYBODY,
    "RequestAccess": STAFF, "ListAccess": STAFF, "RevokeAccess": STAFF,
    "ApproveAccess": _POLICY, "DenyAccess": _POLICY, "BreakGlass": frozenset({"break-glass"}),
    "ReviewAccess": _POLICY,
    "GetPolicy": _POLICY | {"operator"}, "ListPolicies": _POLICY | {"operator"},
    "ExplainPolicy": _POLICY | {"operator"}, "TestPolicy": _POLICY, "DiffPolicy": _POLICY,
    "ProposePolicy": _POLICY, "ApprovePolicy": _POLICY, "RejectPolicy": _POLICY,
    "SetMembership": _PEOPLE, "ListMemberships": _POLICY,
    "ListQuotas": EVERYBODY, "DrawCodes": _PRIVACY, "Reidentify": _PRIVACY,
    "ListProjects": _PRIVACY, "DropProject": _PRIVACY,
    "SetShadowPolicy": _POLICY, "GetShadowPolicy": _POLICY,
    "RequestDestruction": _POLICY, "ApproveDestruction": _POLICY, "CancelDestruction": _POLICY,
    "ListDestructions": _POLICY,
}  # fmt: skip
OPEN = frozenset(
    {
        "ServerLive", "ServerReady", "Login", "IssueToken", "BeginOidcLogin", "FinishOidcLogin",
        "BeginAssertion",
    }
)  # fmt: skip
"""No session is needed for these."""
STREAMS = frozenset({"WatchSession"})
PREDICTING: Mapping[str, frozenset[str]] = {
    "clinician": frozenset({"TREAT", "CAREMGT", "COC", "PATSFTY"}),
    "service": frozenset({"TREAT", "CAREMGT", "COC", "PATSFTY", "HOPERAT"}),
    "model-admin": frozenset({"HTEST"}),
}
REASONS = frozenset(
    {
        "", "POLICY_DENIED", "FIELD_INVALID", "NOT_FOUND", "MODEL_UNKNOWN", "PURPOSE_UNKNOWN",
        "CERTIFICATE_REQUEST_INVALID", "NOT_SUPPORTED", "SECOND_FACTOR_WRONG", "STEP_UP_REQUIRED",
    }
)  # fmt: skip
"""What an empty request may meet."""
MODELS = ("breast-cancer", "diabetes-progression")


def methods() -> Iterator[tuple[str, str]]:
    """Every method of the gateway's protos: its short name and its path."""
    files = (
        open_inference_pb2, destruction_pb2, gateway_pb2, policy_pb2, access_pb2, factor_pb2,
        membership_pb2, quota_pb2, deid_pb2, workload_pb2, oidc_pb2, review_pb2,
    )  # fmt: skip
    for file in files:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield method.name, f"/{service.full_name}/{method.name}"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    with running(tmp_path_factory.mktemp("matrix") / "data") as started:
        yield started


def test_every_method_is_decided_about() -> None:
    names = {name for name, _ in methods()}
    assert names >= POLICY_RPCS
    assert set(ROLES_OF) | OPEN | {"ModelInfer"} == POLICY_RPCS
    policy = load_policy(None)
    for role, rpc in itertools.product(ROLES, ROLES_OF):
        assert policy.decide((role,), rpc, "", "").permitted is (role in ROLES_OF[rpc]), (role, rpc)


@pytest.mark.parametrize("role", ROLES)
def test_control_calls(own: RunningSuite, role: str) -> None:
    name = own.user(f"m-{role}", role)
    with user_channel(own.suite, name) as channel:
        for rpc, path in methods():
            if rpc in OPEN or rpc == "ModelInfer" or rpc not in POLICY_RPCS:
                continue
            token = own.login(name) if rpc == "Logout" else own.token(name)
            reason = ""
            try:
                # An empty request: what is permitted goes on to say what is missing in it.
                metadata = (("authorization", f"Bearer {token}"),)
                if rpc in STREAMS:
                    next(stream := channel.unary_stream(path)(b"", metadata=metadata, timeout=20))
                    stream.cancel()
                else:
                    channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
            except grpc.RpcError as error:
                reason = error_info(error)[0]
            assert reason in REASONS, (rpc, reason)
            said = "refused" if reason == "POLICY_DENIED" else "permitted"
            expected = "permitted" if role in ROLES_OF[rpc] else "refused"
            # One's own certificate renews itself without a rule.
            if rpc == "IssueUserCertificate":
                expected = "permitted"
            assert said == expected, (role, rpc)
            if rpc == "Logout":
                own.login(name)


@pytest.mark.parametrize("role", ROLES)
def test_predictions(own: RunningSuite, role: str) -> None:
    name = own.user(f"m-{role}", role)
    expected = PREDICTING.get(role, frozenset())
    token = own.token(name)
    with user_channel(own.suite, name) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for model in MODELS:
            calls = {
                purpose: infer.future(
                    request(model).SerializeToString(),
                    metadata=(
                        ("authorization", f"Bearer {token}"), ("sealward-purpose", purpose),
                    ),
                    timeout=30,
                )
                for purpose in sorted(PURPOSES)
            }  # fmt: skip
            answered = {p for p, call in calls.items() if call.code() is grpc.StatusCode.OK}
            assert answered == expected, (role, model)
            denied = {error_info(calls[p].exception())[0] for p in set(calls) - answered}
            assert denied == {"POLICY_DENIED"}
