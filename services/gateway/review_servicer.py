"""AccessReviewService: protos to domain and back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from sealward.api.audit.v1 import review_pb2 as audit_pb
from sealward.api.audit.v1.review_pb2_grpc import ReviewServiceStub
from sealward.api.gateway.v1 import review_pb2 as pb
from sealward.api.gateway.v1 import review_pb2_grpc as pb_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.authority import Authority, deadline_of
from services.gateway.control import EVENT_TYPES
from services.gateway.grants import Grants
from services.gateway.policy.changes import PolicyChanges, parse_policy
from services.gateway.policy.store import Bundle
from services.gateway.remote import ask
from services.gateway.review import INFER, Right, Subject, rights
from services.gateway.users import UserDirectory
from services.gateway.workloads.clients import ClientDirectory

DORMANT_DAYS = 90
_DAY = 86_400
_LOOKED_AT_SECONDS = 400 * _DAY
_SECOND = 1_000_000_000
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_PREDICT = "inference.predict"
_TYPES = {path.rpartition("/")[2]: event_type for path, event_type in EVENT_TYPES.items()}

Parameters = Callable[[str, tuple[str, ...]], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class _Used:
    """The last time, seconds since the epoch, and how often."""

    last: int = 0
    count: int = 0


class AccessReviewServicer(pb_grpc.AccessReviewServiceServicer):
    """See review.proto. `models` names the deployment's models, `audit` gives a channel."""

    def __init__(
        self,
        authority: Authority,
        changes: PolicyChanges,
        users: UserDirectory,
        clients: ClientDirectory,
        grants: Grants,
        parameters: Parameters,
        models: Callable[[], Iterable[str]],
        audit: Callable[[], grpc.Channel],
    ) -> None:
        self._authority = authority
        self._changes = changes
        self._users = users
        self._clients = clients
        self._grants = grants
        self._parameters = parameters
        self._models = models
        self._audit = audit

    def ReviewAccess(
        self, request: pb.ReviewAccessRequest, context: Any
    ) -> pb.ReviewAccessResponse:
        """Ask the policy set every question, and audit for the last use of each answer."""
        self._authority.admit(context)
        now = int(time.time())
        if not 0 <= request.as_of <= now + _DAY:
            raise SealwardError(Reason.FIELD_INVALID, "as_of is not in the past", field="as_of")
        until = request.as_of or now
        bundle = self._in_force(request.as_of)
        policy = parse_policy(bundle.text)
        left = call_of(context).attributes
        if _NAME.fullmatch(request.user):
            left[names.TARGET] = request.user
        subjects = [s for s in self._subjects() if request.user in ("", s.name)]
        if request.user and not subjects:
            raise SealwardError(Reason.NOT_FOUND, "there is no such user", field="user")
        since = until - _LOOKED_AT_SECONDS
        used = _Uses(self._used(since, until, request.user, deadline_of(context)))
        dormant = until - (request.dormant_days or DORMANT_DAYS) * _DAY
        models = sorted(self._models())
        answer = pb.ReviewAccessResponse(
            policy_digest=bundle.digest, policy_version=bundle.version, since=since, until=until
        )
        granted = [access for access in self._grants.all() if _held(access, until)]
        for subject in subjects:
            if subject.created > until:
                continue
            last = used.last(subject)
            answer.accounts.append(
                pb.ReviewedAccount(
                    name=subject.name, id=subject.id, kind=subject.kind, roles=subject.roles,
                    disabled=subject.disabled, created=subject.created, last_used=last,
                    dormant=not subject.disabled and max(last, subject.created) < dormant,
                )
            )  # fmt: skip
            own = [access for access in granted if access.user_id == subject.id]
            for right in rights(policy, subject, models, own):
                answer.rights.append(_right(subject, right, used.of(subject, right)))
        left[names.COUNT] = len(answer.accounts)
        return answer

    def _in_force(self, as_of: int) -> Bundle:
        if not as_of or self._changes.fixed:
            return self._changes.active
        return next(
            (bundle for bundle in self._changes.history() if bundle.time <= as_of),
            self._changes.active,
        )

    def _subjects(self) -> Iterator[Subject]:
        for user in sorted(self._users.all(), key=lambda user: user.name):
            yield Subject(
                user.user_id, user.name, "user", user.roles, user.disabled, user.created,
                self._parameters(user.user_id, user.roles),
            )  # fmt: skip
        for client in sorted(self._clients.all(), key=lambda client: client.name):
            yield Subject(
                client.client_id, client.name, "workload", client.roles, client.disabled,
                client.created, self._parameters(client.client_id, client.roles),
            )  # fmt: skip

    def _used(self, since: int, until: int, user: str, deadline: float) -> Sequence[audit_pb.Use]:
        return ask(
            ReviewServiceStub(self._audit()).ListUse,
            audit_pb.ListUseRequest(
                since_unix_nano=max(0, since) * _SECOND,
                until_unix_nano=(until + 1) * _SECOND,
                user=user,
            ),
            deadline=deadline,
            unavailable=Reason.AUDIT_UNAVAILABLE,
        ).rows


class _Uses:
    """What audit says, by who and what."""

    def __init__(self, rows: Iterable[audit_pb.Use]) -> None:
        self._last: dict[tuple[str, str], int] = {}
        self._found: dict[tuple[str, ...], _Used] = {}
        for row in rows:
            who, last = (row.kind, row.actor), row.last_unix_nano // _SECOND
            self._last[who] = max(last, self._last.get(who, 0))
            keys = [(*who, row.type, row.model, "")]
            if row.model:
                keys.append((*who, row.type, "", ""))
            if row.type == _PREDICT:
                keys = [(*who, row.type, row.model, row.purpose)]
            for key in keys:
                before = self._found.get(key, _Used())
                self._found[key] = _Used(max(last, before.last), before.count + row.count)

    def last(self, subject: Subject) -> int:
        """When somebody last did anything; 0 = not in this time."""
        return self._last.get((subject.kind, subject.name), 0)

    def of(self, subject: Subject, right: Right) -> _Used:
        """When somebody last used a right."""
        who = (subject.kind, subject.name)
        if right.rpc != INFER:
            event_type = _TYPES.get(right.rpc, "")
            return self._found.get((*who, event_type, right.model, ""), _Used())
        found = [
            self._found.get((*who, _PREDICT, right.model, purpose), _Used())
            for purpose in right.purposes
        ]
        return _Used(max(use.last for use in found), sum(use.count for use in found))


def _held(access: Any, at: int) -> bool:
    """Whether a grant held at a time. One that was revoked since then cannot be told any more."""
    # A request that nobody decided has expired, too.
    decided = access.state in ("granted", "expired") and access.decided > 0
    return decided and bool(access.decided <= at < access.expires)


def _right(subject: Subject, right: Right, used: _Used) -> pb.ReviewedRight:
    return pb.ReviewedRight(
        name=subject.name, kind=subject.kind, rpc=right.rpc, model=right.model,
        purposes=right.purposes, rule=right.rule, how=right.how, expires=right.expires,
        second_factor=right.second_factor, last_used=used.last, uses=used.count,
    )  # fmt: skip
