"""ID-01: nobody is answered without a certificate of ours, the right one, and a session."""

from __future__ import annotations

import stat

from sealward.api.audit.v1 import audit_pb2
from sealward.api.keys.v1 import keys_pb2
from sealward.check import questions
from sealward.check.deployment import SERVICES, Deployment
from sealward.check.row import Notes, Row

_WAYS = ("plaintext", "no certificate", "another authority")
_FORBIDDEN = "IDENTITY_FORBIDDEN"


def run(deployment: Deployment, notes: Notes) -> None:
    """Knock at every listener in a wrong way, then with the right authority and the wrong name."""
    for service in SERVICES:
        for kind in ("address", "metrics"):
            if not deployment.dial(service, kind, "right"):
                notes.cannot(f"{service} ({kind}) does not answer the administrator either")
            for way in _WAYS:
                if deployment.dial(service, kind, way):
                    notes.fault(f"{service} ({kind}) answers with {way}")
    notes.held(f"{2 * len(SERVICES)} listeners, each tried with: {', '.join(_WAYS)}")
    _wrong_names(deployment, notes)
    _no_session(deployment, notes)
    _store(deployment, notes)
    notes.limit("an expired certificate, and one for another service, cannot be had here")


def _wrong_names(deployment: Deployment, notes: Notes) -> None:
    person = deployment.person("clinician")
    attempts = (
        ("audit", f"{questions.AUDIT}QueryEvents", audit_pb2.QueryEventsRequest()),
        ("keys", f"{questions.KEYS}KeysService/OpenBranchKey", keys_pb2.OpenBranchKeyRequest()),
        ("inference", "/sealward.api.inference.v1.InferenceService/ListModels", None),
    )
    for service, method, message in attempts:
        body = message.SerializeToString() if message else b""
        reply = deployment.call(service, method, body, who=person)
        notes.check(
            reply.reason == _FORBIDDEN,
            f"{service} refuses a person's certificate",
            f"{service} answers a person's certificate: {reply.said}",
        )
    for service, method in (
        ("gateway", questions.INFER), ("keys", f"{questions.KEYS}KeysService/CreateBranchKey"),
        ("audit", f"{questions.AUDIT}Append"),
    ):  # fmt: skip
        reply = deployment.call(service, method)
        name = method.rpartition("/")[2]
        notes.check(
            reply.reason == _FORBIDDEN,
            f"{name} refuses the administrator",
            f"{name} answers the administrator: {reply.said}",
        )


def _no_session(deployment: Deployment, notes: Notes) -> None:
    person = deployment.person("clinician")
    message = questions.prediction(questions.models(deployment)[0])
    for what, token, wanted in (
        ("no session", "", "SESSION_MISSING"), ("a forged token", "A" * 43, "SESSION_INVALID"),
    ):  # fmt: skip
        reply = questions.infer(deployment, person, message, purpose="TREAT", token=token)
        notes.check(
            reply.reason == wanted, f"refused: {what}", f"not refused: {what} ({reply.said})"
        )
    for path in (f"/{questions.INFER}", f"{questions.INFER}/", questions.INFER.lower()):
        reply = deployment.call("gateway", path, message.SerializeToString(), who=person)
        if reply.ok:
            notes.fault("a path that is none is answered")
    notes.held("paths that are almost right are not served")


def _store(deployment: Deployment, notes: Notes) -> None:
    if deployment.root is None:
        notes.limit("the session store is not on this machine")
        return
    socket = deployment.root / "run" / "valkey.sock"
    remote = {way: deployment.dial_store(way) for way in ("plaintext", "no certificate")}
    if None not in remote.values():
        for way, answered in remote.items():
            notes.check(
                not answered,
                f"the session store refuses: {way}",
                f"the session store answers with {way}",
            )
        return
    if not socket.exists():
        notes.limit("the session store was not found")
        return
    modes = [path.stat().st_mode for path in (socket, socket.parent, deployment.root)]
    notes.check(
        all(stat.S_IMODE(mode) & 0o077 == 0 for mode in modes),
        "the session store is a socket that other accounts cannot reach",
        "the session store's socket is open to other accounts",
    )


ROW = Row(
    id="ID-01",
    title="Everybody is authenticated, by certificate and session, at every listener",
    current="45 CFR 164.312(d)",
    nprm="proposed 45 CFR 164.312 (authentication)",
    proves="plaintext, no certificate and a foreign authority are refused at every listener; the "
    "right authority with the wrong name at each service; no session and forged ones at the "
    "gateway",
    not_proven="that a certificate is held by whom it names",
    duty="check who somebody is before they get an account; keep client keys on managed devices",
    run=run,
)
