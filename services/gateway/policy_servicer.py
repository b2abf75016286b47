"""PolicyService: protos to domain and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sealward.api.gateway.v1 import policy_pb2 as pb
from sealward.api.gateway.v1 import policy_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority
from services.gateway.control import UNDO
from services.gateway.memberships import Parameters, split
from services.gateway.memberships import none as no_parameters
from services.gateway.policy import NO_RULE, RULE_FAILED, CedarPolicy, Facts, PolicyError
from services.gateway.policy import explain as questions
from services.gateway.policy.changes import PolicyChanges, parse_policy
from services.gateway.policy.profiles import with_profile
from services.gateway.policy.schema import POLICY_RPCS
from services.gateway.policy.store import Bundle
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES, UserDirectory

_MOST_CASES = 10_000
_MOST_ROWS = 1_000


class PolicyServicer(pb_grpc.PolicyServiceServicer):
    """Reading, trying and changing the policy set. `models` names the deployment's models."""

    def __init__(
        self,
        authority: Authority,
        changes: PolicyChanges,
        users: UserDirectory,
        models: Callable[[], Iterable[str]],
        parameters: Callable[[str, tuple[str, ...]], Parameters] = no_parameters,
    ) -> None:
        self._authority = authority
        self._changes = changes
        self._users = users
        self._models = models
        self._parameters = parameters

    def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        """Return the set in force, what is proposed, and the set with a profile where asked."""
        self._authority.admit(context)
        extended = ""
        if request.profile:
            try:
                extended = with_profile(self._changes.active.text, request.profile)
            except PolicyError as error:
                raise SealwardError(Reason.FIELD_INVALID, str(error), field="profile") from None
        return pb.GetPolicyResponse(
            active=_bundle(self._changes.active),
            proposals=[_bundle(found) for found in self._changes.proposals()],
            fixed=self._changes.fixed,
            with_profile=extended,
        )

    def ListPolicies(
        self, _request: pb.ListPoliciesRequest, context: Any
    ) -> pb.ListPoliciesResponse:
        """Return the history."""
        self._authority.admit(context)
        return pb.ListPoliciesResponse(
            bundles=[_bundle(found) for found in self._changes.history()]
        )

    def ProposePolicy(
        self, request: pb.ProposePolicyRequest, context: Any
    ) -> pb.ProposePolicyResponse:
        """Keep a proposal."""
        self._authority.admit(context)
        call = call_of(context)
        proposal = self._changes.propose(request.jws, call.peer)
        call.attributes[names.TARGET] = proposal.digest
        call.attributes[UNDO] = lambda: self._changes.reject(proposal.digest)
        return pb.ProposePolicyResponse(proposal=_bundle(proposal))

    def ApprovePolicy(
        self, request: pb.ApprovePolicyRequest, context: Any
    ) -> pb.ApprovePolicyResponse:
        """Put somebody else's proposal in force. The record names both sets."""
        self._authority.admit(context)
        call = call_of(context)
        _note_digest(call.attributes, request.digest)
        before, after = self._changes.approve(request.digest, request.jws, call.peer)
        call.attributes[names.CHANGE_BEFORE] = before.digest
        call.attributes[names.CHANGE_AFTER] = after.digest
        call.attributes[UNDO] = lambda: self._changes.undo(before, after)
        return pb.ApprovePolicyResponse(active=_bundle(after))

    def RejectPolicy(
        self, request: pb.RejectPolicyRequest, context: Any
    ) -> pb.RejectPolicyResponse:
        """Forget a proposal."""
        self._authority.admit(context)
        _note_digest(call_of(context).attributes, request.digest)
        self._changes.reject(request.digest)
        return pb.RejectPolicyResponse()

    def ExplainPolicy(
        self, request: pb.ExplainPolicyRequest, context: Any
    ) -> pb.ExplainPolicyResponse:
        """Say how a question is decided, and what would turn the answer round."""
        self._authority.admit(context)
        policy = self._chosen(request.text)
        question = _question(request.question)
        if request.user:
            question = self._as_user(question, request.user)
            call_of(context).attributes[names.TARGET] = request.user
        decision = questions.ask(policy, question)
        deciding = policy.deciding(
            question.roles, question.rpc, question.model, question.purpose, question.facts
        )
        return pb.ExplainPolicyResponse(
            permitted=decision.permitted,
            rule=decision.rule,
            deciding=[_rule(policy, rule) for rule in deciding],
            digest=policy.digest,
            changes=[
                pb.PolicyChange(what=change.what, value=change.value, rule=change.rule)
                for change in questions.changes(policy, question)
            ],
            roles=question.roles,
            outputs=questions.released(decision, question.rpc),
            quotas=questions.limited(decision),
        )

    def TestPolicy(self, request: pb.TestPolicyRequest, context: Any) -> pb.TestPolicyResponse:
        """Decide the cases and compare."""
        self._authority.admit(context)
        if len(request.cases) > _MOST_CASES:
            raise SealwardError(Reason.FIELD_INVALID, f"at most {_MOST_CASES} cases", field="cases")
        policy = self._chosen(request.text)
        results = []
        for case in request.cases:
            decision = questions.ask(policy, _question(case.question))
            outputs = questions.released(decision, case.question.rpc)
            passed = (
                decision.permitted == case.permitted
                and case.rule in ("", decision.rule)
                and (not case.outputs or set(case.outputs) == set(outputs))
            )
            results.append(
                pb.PolicyResult(
                    name=case.name,
                    passed=passed,
                    permitted=decision.permitted,
                    rule=decision.rule,
                    outputs=outputs,
                )
            )
        call_of(context).attributes[names.COUNT] = len(results)
        return pb.TestPolicyResponse(results=results, digest=policy.digest)

    def DiffPolicy(self, request: pb.DiffPolicyRequest, context: Any) -> pb.DiffPolicyResponse:
        """Compare a set with the one in force."""
        self._authority.admit(context)
        before, after = self._chosen(""), parse_policy(request.text)
        rows, compared = questions.differences(before, after)
        added, removed = questions.added_and_removed(before.rules, after.rules)
        return pb.DiffPolicyResponse(
            differences=[
                pb.PolicyDifference(
                    role=row.role, rpc=row.rpc, model=row.model, purposes=row.purposes,
                    opened=row.opened, before_rule=row.before_rule, after_rule=row.after_rule,
                    before_outputs=row.before_outputs, after_outputs=row.after_outputs,
                    before_quotas=row.before_quotas, after_quotas=row.after_quotas,
                )
                for row in rows
            ],
            before=before.digest, after=after.digest, added=added, removed=removed,
            compared=compared,
        )  # fmt: skip

    def SetShadowPolicy(
        self, request: pb.SetShadowPolicyRequest, context: Any
    ) -> pb.SetShadowPolicyResponse:
        """Set or end the shadow."""
        self._authority.admit(context)
        policy = parse_policy(request.text) if request.text else None
        self._changes.live.shadow(policy)
        digest = policy.digest if policy else ""
        if digest:
            call_of(context).attributes[names.TARGET] = digest
        return pb.SetShadowPolicyResponse(digest=digest)

    def GetShadowPolicy(
        self, _request: pb.GetShadowPolicyRequest, context: Any
    ) -> pb.GetShadowPolicyResponse:
        """Report what the shadow has seen."""
        self._authority.admit(context)
        shadow = self._changes.live.shadowed()
        if shadow is None:
            return pb.GetShadowPolicyResponse()
        known = set(self._models())
        most = sorted(shadow.counts.items(), key=lambda found: -found[1])[:_MOST_ROWS]
        return pb.GetShadowPolicyResponse(
            digest=shadow.policy.digest,
            decided=shadow.decided[0],
            differences=[
                pb.ShadowDifference(
                    roles=kind.roles, rpc=kind.rpc, purpose=kind.purpose, opened=kind.opened,
                    # Any other name is a caller's own text.
                    model=kind.model if kind.model in known else "",
                    rule=kind.rule, calls=calls,
                )
                for kind, calls in most
            ],
            since=shadow.since,
        )  # fmt: skip

    def _chosen(self, text: str) -> CedarPolicy:
        return parse_policy(text or self._changes.active.text)

    def _as_user(self, question: questions.Question, name: str) -> questions.Question:
        user = self._users.get(name)
        if user is None:
            raise SealwardError(Reason.NOT_FOUND, "there is no such user", field="user")
        facts = question.facts
        return questions.Question(
            user.roles, question.rpc, question.model, question.purpose,
            Facts(user.name, "user", facts.granted, facts.break_glass, facts.patient,
                  facts.second_factor, self._parameters(user.user_id, user.roles),
                  facts.multi_factor),
        )  # fmt: skip


def _question(asked: pb.PolicyQuestion) -> questions.Question:
    for field, value, known in (
        ("roles", set(asked.roles), set(ROLES)),
        ("rpc", {asked.rpc}, POLICY_RPCS),
        ("purpose", {asked.purpose}, {*PURPOSES, ""}),
        ("kind", {asked.kind}, {"", "user", "workload"}),
    ):
        if not value <= known:
            raise SealwardError(Reason.FIELD_INVALID, f"{field} is not known", field=field)
    facts = Facts(
        asked.actor, asked.kind or "user", asked.granted, asked.break_glass, asked.patient,
        asked.second_factor, split(asked.parameters), asked.multi_factor,
    )  # fmt: skip
    return questions.Question(tuple(asked.roles), asked.rpc, asked.model, asked.purpose, facts)


def _rule(policy: CedarPolicy, rule_id: str) -> pb.PolicyRule:
    if rule_id in (NO_RULE, RULE_FAILED):
        return pb.PolicyRule(id=rule_id, effect="forbid")
    effect, text = policy.rule(rule_id)
    return pb.PolicyRule(id=rule_id, effect=effect, text=text)


def _note_digest(attributes: dict[str, Any], digest: str) -> None:
    """Leave the digest for the record, when it is one: any other text is the caller's own."""
    if len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
        attributes[names.TARGET] = digest


def _bundle(found: Bundle) -> pb.PolicyBundle:
    return pb.PolicyBundle(
        version=found.version, digest=found.digest, text=found.text, jws=found.jws,
        proposed_by=found.proposed_by, approved_by=found.approved_by, time=found.time,
    )  # fmt: skip
