"""The access review as text, CSV and JSON: who may call what, by which rule, when they last did."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sealward.cli.output import line, table
from sealward.cli.times import parse_time, show_seconds

if TYPE_CHECKING:
    from sealward.api.gateway.v1 import review_pb2 as pb
    from sealward.cli.acting import Acting

RULE = "45 CFR 164.308(a)(4)(ii)(C)"
COLUMNS = (
    "name", "kind", "id", "roles", "disabled", "dormant", "rpc", "model", "purposes", "rule",
    "how", "expires", "second_factor", "last_used", "uses",
)  # fmt: skip
_SECONDS = 60.0
_SECOND = 1_000_000_000


def ask(who: Acting, *, as_of: str, user: str, dormant_days: int) -> pb.ReviewAccessResponse:
    """Ask the gateway; raise grpc.RpcError or CliError."""
    from sealward.api.gateway.v1 import review_pb2 as pb
    from sealward.api.gateway.v1.review_pb2_grpc import AccessReviewServiceStub

    now = dt.datetime.now(dt.UTC)
    request = pb.ReviewAccessRequest(
        as_of=parse_time(as_of, now) // _SECOND if as_of else 0,
        user=user,
        dormant_days=dormant_days,
    )
    return AccessReviewServiceStub(who.channel).ReviewAccess(
        request, timeout=_SECONDS, metadata=who.metadata
    )


def value(found: pb.ReviewAccessResponse) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "rule": RULE,
        "policy": {"digest": found.policy_digest, "version": found.policy_version},
        "since": show_seconds(found.since),
        "until": show_seconds(found.until),
        "accounts": [
            {
                "name": a.name, "id": a.id, "kind": a.kind, "roles": list(a.roles),
                "disabled": a.disabled, "created": _time(a.created),
                "last_used": _time(a.last_used), "dormant": a.dormant,
            }
            for a in found.accounts
        ],
        "rights": [
            {
                "name": r.name, "kind": r.kind, "rpc": r.rpc, "model": r.model or None,
                "purposes": list(r.purposes), "rule": r.rule, "how": r.how,
                "expires": _time(r.expires), "second_factor": r.second_factor,
                "last_used": _time(r.last_used), "uses": r.uses,
            }
            for r in found.rights
        ],
    }  # fmt: skip


def csv_text(found: pb.ReviewAccessResponse) -> str:
    """Return a row for each right, and one for each account without any.

    Every cell is a name, a code, a number or a time: none can be a formula.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for account, right in _pairs(found):
        about = [
            account.name, account.kind, account.id, " ".join(account.roles),
            _yes(account.disabled), _yes(account.dormant),
        ]  # fmt: skip
        may = [""] * 9
        if right is not None:
            may = [
                right.rpc, right.model, " ".join(right.purposes), right.rule, right.how,
                _time(right.expires) or "", _yes(right.second_factor),
                _time(right.last_used) or "", str(right.uses),
            ]  # fmt: skip
        writer.writerow([*about, *may])
    return out.getvalue()


def show(found: pb.ReviewAccessResponse) -> None:
    """Print it: the RPCs of a rule together, then what is worth a look."""
    line(
        f"Access review, {RULE}: policy version {found.policy_version}, "
        f"{found.policy_digest[:16]}, at {show_seconds(found.until)}"
    )
    rows: dict[tuple[str, ...], tuple[list[str], list[str], int]] = {}
    for account, right in _pairs(found):
        if right is None:
            continue
        how = right.how + (f" until {_time(right.expires)}" if right.expires else "")
        how += ", second factor" if right.second_factor else ""
        key = (account.name, account.kind, right.rule, right.model, how)
        rpcs, purposes, last = rows.get(key, ([], [], 0))
        rows[key] = (
            [*rpcs, right.rpc], sorted({*purposes, *right.purposes}), max(last, right.last_used),
        )  # fmt: skip
    table(
        ["name", "kind", "rule", "model", "how", "may call", "for", "last used"],
        [
            [*key, " ".join(rpcs), " ".join(purposes), _time(last) or "not"]
            for key, (rpcs, purposes, last) in rows.items()
        ],
        empty="nobody may do anything",
    )
    dormant = [a for a in found.accounts if a.dormant]
    for account in dormant:
        line(f"dormant: {account.name} ({account.kind}), last used {_time(account.last_used)}")
    disabled = sum(account.disabled for account in found.accounts)
    line(
        f"{len(found.accounts)} accounts: {disabled} disabled, {len(dormant)} dormant; uses since "
        f"{show_seconds(found.since)}"
    )
    line("whoever owns the suite's folder is its local administrator, by no rule of the policy")


def _pairs(
    found: pb.ReviewAccessResponse,
) -> Iterator[tuple[pb.ReviewedAccount, pb.ReviewedRight | None]]:
    rights: dict[tuple[str, str], list[pb.ReviewedRight]] = {}
    for right in found.rights:
        rights.setdefault((right.name, right.kind), []).append(right)
    for account in found.accounts:
        for own in rights.get((account.name, account.kind), [None]):
            yield account, own


def _time(seconds: int) -> str | None:
    return show_seconds(seconds) if seconds else None


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
