"""NW-01: inner services are reached by whom they serve, and listen where they have to."""

from __future__ import annotations

import ipaddress

from sealward.check import questions
from sealward.check.deployment import SERVICES, Deployment
from sealward.check.row import Notes, Row
from sealward.kit.access import RPCS

EDGES = frozenset({"gateway"})
_INNER = {
    "inference": "/sealward.api.inference.v1.InferenceService/Infer",
    "audit": f"{questions.AUDIT}GetEvent",
    "keys": f"{questions.KEYS}KeysService/CreateBranchKey",
}


def run(deployment: Deployment, notes: Notes) -> None:
    """Where does each process listen, and does an inner service answer a caller."""
    for listener in deployment.listeners():
        address = ipaddress.ip_address(listener.host)
        if address.is_unspecified and listener.owner not in EDGES:
            notes.fault(f"{listener.owner} listens on every address, port {listener.port}")
    notes.held(f"no inner service listens on every address; {len(SERVICES)} services looked at")
    person = deployment.person("clinician")
    for service, method in _INNER.items():
        reply = deployment.call(service, method, who=person)
        notes.check(
            reply.reason == "IDENTITY_FORBIDDEN",
            f"{service} does not serve callers",
            f"{service} answers a caller: {reply.said}",
        )
    reached = [
        method
        for method, who in RPCS.items()
        if who & {"user"} and method.startswith(tuple(f"/sealward.api.{s}." for s in _INNER))
    ]
    notes.check(
        not reached,
        "the access table opens no RPC of an inner service to people",
        f"the access table opens {len(reached)} RPCs of inner services to people",
    )
    notes.limit("firewalls and segments of the site's network")


ROW = Row(
    id="NW-01",
    title="Inner services are out of callers' reach",
    current="45 CFR 164.312(a)(1)",
    nprm="proposed 45 CFR 164.312(a) (network segmentation), 164.312 (network ports)",
    proves="no inner service listens on every address, and each refuses a caller's certificate",
    not_proven="the site's own network",
    duty="put inner services into a segment of their own when they are on several machines",
    run=run,
)
