"""AC-02: one id a person, never shared, never given again."""

from __future__ import annotations

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row

_USERS = f"{questions.GATEWAY}UserService/"


def run(deployment: Deployment, notes: Notes) -> None:
    """Two people in the record; a name and a session that somebody else tries to use."""
    one, two = deployment.person("clinician"), deployment.person("clinician", fresh=True)
    model = questions.models(deployment)[0]
    message = questions.prediction(model)
    records = []
    for person in (one, two):
        reply = questions.infer(deployment, person, message, purpose="TREAT")
        if not reply.event_id:
            notes.cannot(f"a prediction left no record: {reply.said}")
        records.append(questions.record(deployment, reply.event_id))
    names = [record["sealward.actor.id"] for record in records]
    keys = [record["sealward.actor.cert"] for record in records]
    notes.check(
        names == [one.name, two.name] and len(set(keys)) == 2,
        "the record tells two people apart, by name and by certificate key",
        "the record does not tell two people apart",
    )
    listed = gw.ListUsersResponse.FromString(
        questions.asked(deployment, "gateway", f"{_USERS}ListUsers", gw.ListUsersRequest()).body
    ).users
    ids = [user.user_id for user in listed]
    notes.check(
        len(set(ids)) == len(ids) and len({user.user for user in listed}) == len(ids),
        f"{len(ids)} users, each with a name and an id of its own",
        "two users share a name or an id",
    )
    again = gw.CreateUserRequest(user=two.name, roles=["clinician"], password="x" * 24)
    reply = deployment.call("gateway", f"{_USERS}CreateUser", again.SerializeToString())
    notes.check(
        reply.reason == "ALREADY_EXISTS",
        "a name that was given is not given again",
        f"a name that was given is given again: {reply.said}",
    )
    reply = questions.infer(deployment, one, message, purpose="TREAT", token=two.token)
    notes.check(
        reply.reason == "SESSION_CERTIFICATE_MISMATCH",
        "a session does not work with another person's certificate",
        f"a session works with another person's certificate: {reply.said}",
    )
    other = gw.LoginRequest(user=two.name, password=two.password)
    login = f"{questions.GATEWAY}SessionService/Login"
    reply = deployment.call("gateway", login, other.SerializeToString(), who=one, token="")
    notes.check(
        not reply.ok,
        "nobody logs in as somebody else, the right password or not",
        "somebody logged in under another person's certificate",
    )


ROW = Row(
    id="AC-02",
    title="Every person and workload has an id of its own",
    current="45 CFR 164.312(a)(2)(i)",
    nprm="proposed 45 CFR 164.312(a)(2)(i)",
    proves="two people are two ids and two keys in the record; names and ids are unique and not "
    "given again; session and name are of no use with another certificate",
    not_proven="that two people do not share one device and one password",
    duty="give each person an account of their own and forbid sharing in the sanction policy",
    run=run,
)
