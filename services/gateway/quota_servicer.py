"""QuotaService: protos to domain and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sealward.api.gateway.v1 import quota_pb2 as pb
from sealward.api.gateway.v1 import quota_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority
from services.gateway.memberships import Parameters
from services.gateway.policy import Facts
from services.gateway.policy.limits import Limit
from services.gateway.quotas import Quotas
from services.gateway.subjects import Subject, Subjects

_SEE_OTHERS = "ListPolicies"


class QuotaServicer(pb_grpc.QuotaServiceServicer):
    """Tells how much of which quota is used.

    `limits` returns the quotas that the policies in force set for somebody (Policy.quotas_of).
    """

    def __init__(
        self,
        authority: Authority,
        quotas: Quotas,
        subjects: Subjects,
        limits: Callable[[Sequence[str], Facts], Iterable[Limit]],
        parameters: Callable[[str, tuple[str, ...]], Parameters],
    ) -> None:
        self._authority = authority
        self._quotas = quotas
        self._subjects = subjects
        self._limits = limits
        self._parameters = parameters

    def ListQuotas(self, request: pb.ListQuotasRequest, context: Any) -> pb.ListQuotasResponse:
        """List: one's own, or those of others for who may read the policies."""
        caller = self._authority.admit(context)
        own = "" if caller.session is None else caller.session.user
        if caller.identity.kind == "workload":
            own = f"workload/{own}"
        others = request.everybody or caller.local or request.user not in ("", own)
        if others and not self._authority.may(caller, _SEE_OTHERS):
            raise SealwardError(Reason.POLICY_DENIED, "no rule permits this role others' quotas")
        if request.everybody or (caller.local and not request.user):
            found = self._everybody()
        else:
            found = self._of(request.user or own, context)
        call_of(context).attributes[names.COUNT] = len(found)
        return pb.ListQuotasResponse(quotas=found)

    def _of(self, name: str, context: Any) -> list[pb.Quota]:
        user = self._subjects.named(name)
        call_of(context).attributes[names.TARGET] = user.name
        who = Facts(user.actor, user.kind, parameters=self._parameters(user.id, user.roles))
        mine = self._limits(user.roles, who)
        return [self._quota(limit, user) for limit in sorted(set(mine))]

    def _everybody(self) -> list[pb.Quota]:
        users = {user.id: user for user in self._subjects.all()}
        return [
            self._quota(limit, users.get(user_id))
            for limit, user_id in self._quotas.active()
            if limit.shared or user_id in users
        ]

    def _quota(self, limit: Limit, user: Subject | None) -> pb.Quota:
        used, resets = self._quotas.used(limit, "" if user is None else user.id)
        return pb.Quota(
            rule=limit.rule, kind=limit.kind, amount=limit.amount, seconds=limit.seconds,
            shared=limit.shared, user="" if limit.shared or user is None else user.name,
            used=used, resets=int(resets),
        )  # fmt: skip
