"""The vocabulary of policies as a Cedar schema: principals, actions, resources, context.

Policies are validated against it before they are used, so a mistyped role, RPC or purpose is
refused when it is written and not discovered when somebody is let in
(https://docs.cedarpolicy.com/schema/human-readable-schema.html).
"""

from __future__ import annotations

import json
from typing import Any

from sealward.kit.access import RPCS
from services.gateway.purposes import PURPOSES, groups_of
from services.gateway.users import ROLES

_SERVICES = ("/inference.GRPCInferenceService/", "/sealward.api.gateway.v1.")
POLICY_RPCS = frozenset(name.rsplit("/", 1)[1] for name in RPCS if name.startswith(_SERVICES))
"""The actions: the RPCs that the gateway serves, by their short names."""

DEPLOYMENT = {"type": "Deployment", "id": "this"}
"""What an RPC acts on that acts on no model."""
ANY_PURPOSE = "any"
"""The group that every purpose is in."""
PURPOSE_GROUPS = frozenset({ANY_PURPOSE, *(g for p in PURPOSES for g in groups_of(p))})
"""The groups that policies may name purposes by."""

_HEAD = """
// Roles and purposes are listed, so that a policy cannot name one that does not exist.
entity Role enum [{roles}];
// Tags are the parameters of memberships: "service.duty".
entity User in [Role] tags String;
entity Workload in [Role] tags String;
entity Purpose in [PurposeGroup];
entity PurposeGroup;
entity Model;
entity Deployment;
type Facts = {{
  purpose?: Purpose,
  granted: Bool,
  breakGlass: Bool,
  patient: Bool,
  secondFactor: Bool,
  multiFactor: Bool,
}};
"""
_ACTION = (
    "action {name} appliesTo {{ principal: [User, Workload], resource: [Model, Deployment],"
    " context: Facts }};\n"
)


def schema_text() -> str:
    """Return the schema, in Cedar's own notation."""
    head = _HEAD.format(roles=", ".join(f'"{role}"' for role in sorted(ROLES)))
    return head + "".join(_ACTION.format(name=name) for name in sorted(POLICY_RPCS))


def entities_json() -> str:
    """Return what every decision needs to know: which groups each purpose is in."""
    found = [_entity("PurposeGroup", group) for group in sorted(PURPOSE_GROUPS)]
    for purpose in sorted(PURPOSES):
        parents = [{"type": "PurposeGroup", "id": g} for g in (ANY_PURPOSE, *groups_of(purpose))]
        found.append(_entity("Purpose", purpose, parents))
    return json.dumps(found)


def principal_json(
    kind: str, actor: str, roles: tuple[str, ...], parameters: tuple[tuple[str, str], ...] = ()
) -> str:
    """Return the caller as an entity that is in its roles, with its parameters as tags."""
    parents = [{"type": "Role", "id": role} for role in roles]
    entity = _entity(principal_type(kind), actor, parents)
    if parameters:
        entity["tags"] = dict(parameters)
    return json.dumps([entity])


def principal_type(kind: str) -> str:
    """Return the entity type of a caller's kind."""
    return "Workload" if kind == "workload" else "User"


def _entity(
    entity_type: str, name: str, parents: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    return {"uid": {"type": entity_type, "id": name}, "attrs": {}, "parents": parents or []}
