"""ID-03: there is no account that nobody made, and no password that everybody knows."""

from __future__ import annotations

from sealward.api.gateway.v1 import gateway_pb2 as gw
from sealward.check import questions
from sealward.check.deployment import Deployment, Person, Reply
from sealward.check.row import Notes, Row

_CREATE = f"{questions.GATEWAY}UserService/CreateUser"
_DISABLE = f"{questions.GATEWAY}UserService/DisableUser"
_LIST = f"{questions.GATEWAY}UserService/ListUsers"
_LOGIN = f"{questions.GATEWAY}SessionService/Login"
FIRST = "admin"
_WEAK = ("password", "admin", "sealward", "changeme")


def run(deployment: Deployment, notes: Notes) -> None:
    """Try bad passwords, a second ceremony, and a one-time password twice."""
    for password in _WEAK:
        request = gw.CreateUserRequest(
            user=f"zzcheck-weak-{deployment.settings.canary[-8:].lower()}",
            roles=["clinician"], password=password,
        )  # fmt: skip
        reply = deployment.call("gateway", _CREATE, request.SerializeToString())
        if reply.ok:
            notes.fault("a password of everybody's is taken for a new user")
            disable = gw.DisableUserRequest(user=request.user)
            deployment.call("gateway", _DISABLE, disable.SerializeToString())
            break
    else:
        notes.held(f"{len(_WEAK)} passwords of everybody's are refused for a new user")
    reply = questions.asked(deployment, "gateway", _LIST, gw.ListUsersRequest())
    users = {user.user: user for user in gw.ListUsersResponse.FromString(reply.body).users}
    notes.check(
        all(user.user_id and user.created and user.roles for user in users.values()),
        f"{len(users)} users, each made at a time, with an id and roles",
        "a user was made by nobody",
    )
    if FIRST in users:
        request = gw.CreateUserRequest(user=FIRST, roles=["security-admin"], password="x" * 24)
        reply = deployment.call("gateway", _CREATE, request.SerializeToString())
        notes.check(
            reply.reason == "ALREADY_EXISTS",
            "the first administrator is made once",
            f"the first administrator is made again: {reply.said}",
        )
    _one_time(deployment, notes)


def _one_time(deployment: Deployment, notes: Notes) -> None:
    person = deployment.one_time("clinician")
    reply = deployment.login(person)
    notes.check(
        reply.reason == "PASSWORD_CHANGE_REQUIRED",
        "a one-time password opens nothing until it is changed",
        f"a one-time password works as it is: {reply.said}",
    )
    new = f"{person.password}-new"
    reply = _changed(deployment, person, new)
    notes.check(reply.ok, "it can be changed once", f"it cannot be changed: {reply.said}")
    reply = _changed(deployment, person, f"{new}-again")
    notes.check(not reply.ok, "and is worth nothing afterwards", "it can be used a second time")


def _changed(deployment: Deployment, person: Person, new: str) -> Reply:
    request = gw.LoginRequest(user=person.name, password=person.password, new_password=new)
    return deployment.call("gateway", _LOGIN, request.SerializeToString(), who=person, token="")


ROW = Row(
    id="ID-03",
    title="No default account and no default password",
    current="45 CFR 164.308(a)(5)(ii)(D)",
    nprm="proposed 45 CFR 164.308(a) (default passwords changed)",
    proves="passwords of everybody's are refused, a one-time password has to be changed and works "
    "once, the first administrator is made once",
    not_proven="passwords that people wrote down",
    duty="hand one-time passwords over in person, forbid sharing",
    run=run,
)
