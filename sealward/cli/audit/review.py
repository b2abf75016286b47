"""`sealward audit review|bursts|activity`: what a privacy officer looks at every week."""

from __future__ import annotations

import time
import uuid
from enum import StrEnum
from typing import Annotated

import typer

from sealward.cli.audit.asking import SECONDS, Since, Tenant, Until, nanos, reviewing
from sealward.cli.audit.common import Event, Limit, event_id
from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import emit, table
from sealward.cli.times import show_nanos

app = typer.Typer(help="Review events under break-glass.", no_args_is_help=True)

_DAY = 24 * 3600 * 1_000_000_000


class Verdict(StrEnum):
    """What a reviewer decides."""

    JUSTIFIED = "justified"
    NOT_JUSTIFIED = "not-justified"
    ESCALATED = "escalated"


@app.command("list")
def list_(
    since: Since = "",
    until: Until = "",
    every: Annotated[bool, typer.Option("--all", help="The decided ones, too.")] = False,
    limit: Limit = 100,
    tenant: Tenant = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """List what waits for a decision, the oldest first."""
    from sealward.api.audit.v1 import review_pb2

    with reviewing(directory, "asking for the review queue") as review:
        answer = review.ListBreakGlass(
            review_pb2.ListBreakGlassRequest(
                since_unix_nano=nanos(since),
                until_unix_nano=nanos(until),
                decided=every,
                limit=limit,
                tenant=tenant,
            ),
            timeout=SECONDS,
        )
    now = time.time_ns()
    items = [
        {
            "event_id": str(uuid.UUID(bytes=item.event.event_id)),
            "log_index": item.event.log_index,
            "time": show_nanos(item.event.time_unix_nano),
            "age_days": max(0, now - item.event.time_unix_nano) // _DAY,
            "actor": item.event.actor,
            "type": item.event.type,
            "model": item.event.model,
            "purpose": item.event.purpose,
            "patient": item.event.patient,
            "outcome": item.event.outcome,
            "verdict": item.verdict or None,
            "reviewer": item.reviewer or None,
            "decided": show_nanos(item.decided_unix_nano) if item.decided_unix_nano else None,
        }
        for item in answer.items
    ]
    if as_json:
        emit({"items": items, "waiting": answer.waiting}, as_json=True)
        return
    columns = ("time", "age_days", "actor", "type", "model", "outcome", "verdict", "event_id")
    table(columns, [[item[c] for c in columns] for item in items], empty="nothing waits")


@app.command("sign-off")
def sign_off(
    event: Event,
    verdict: Annotated[Verdict, typer.Option("--verdict", help="The decision.")],
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Decide about an event. The decision is an event of its own; the newest counts."""
    from sealward.api.audit.v1 import review_pb2

    with reviewing(directory, "recording the decision") as review:
        answer = review.SignOff(
            review_pb2.SignOffRequest(event_id=event_id(event), verdict=str(verdict)),
            timeout=SECONDS,
        )
    emit(
        {"event_id": event, "verdict": str(verdict), "earlier": answer.earlier or None},
        as_json=as_json,
        text=f"{event}: {verdict}" + (f" (was {answer.earlier})" if answer.earlier else ""),
    )


def bursts(
    since: Since = "30d",
    until: Until = "",
    logins: Annotated[bool, typer.Option("--logins", help="Failed logins alone.")] = False,
    threshold: Annotated[
        int, typer.Option("--threshold", min=2, max=1_000_000, help="So many make a burst.")
    ] = 10,
    window: Annotated[
        int, typer.Option("--window", min=1, max=604_800, help="Within so many seconds.")
    ] = 300,
    tenant: Tenant = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show refusals, or failed logins, that came close together."""
    from sealward.api.audit.v1 import review_pb2

    with reviewing(directory, "asking for bursts") as review:
        answer = review.ListBursts(
            review_pb2.ListBurstsRequest(
                since_unix_nano=nanos(since),
                until_unix_nano=nanos(until),
                logins=logins,
                threshold=threshold,
                window_seconds=window,
                tenant=tenant,
            ),
            timeout=SECONDS,
        )
    rows = [
        {
            "by": burst.by,
            "who": burst.who,
            "count": burst.count,
            "first": show_nanos(burst.first_unix_nano),
            "last": show_nanos(burst.last_unix_nano),
            "reasons": list(burst.reasons),
            "event_ids": [str(uuid.UUID(bytes=found)) for found in burst.event_ids],
        }
        for burst in answer.bursts
    ]
    if as_json:
        emit({"bursts": rows}, as_json=True)
        return
    table(
        ("by", "who", "count", "first", "last", "reasons"),
        [[*[r[c] for c in ("by", "who", "count", "first", "last")], ", ".join(burst.reasons)]
         for r, burst in zip(rows, answer.bursts, strict=True)],
        empty="no bursts",
    )  # fmt: skip


def activity(
    by_model: Annotated[bool, typer.Option("--by-model", help="A row for each model.")] = False,
    user: Annotated[str, typer.Option("--user", help="Only this user.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only this model.")] = "",
    since: Since = "30d",
    until: Until = "",
    hours: Annotated[
        str, typer.Option("--work-hours", metavar="FROM-TO", help="Hours of the day, in UTC.")
    ] = "6-20",
    tenant: Tenant = "",
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Show what each user did, or what was done with each model."""
    from sealward.api.audit.v1 import review_pb2

    begin, end = _hours(hours)
    with reviewing(directory, "asking for the activity") as review:
        answer = review.ListActivity(
            review_pb2.ListActivityRequest(
                since_unix_nano=nanos(since),
                until_unix_nano=nanos(until),
                by_model=by_model,
                user=user,
                model=model,
                work_from=begin,
                work_to=end,
                tenant=tenant,
            ),
            timeout=SECONDS,
        )
    columns = ("name", "ok", "denied", "failed", "patients", "off_hours", "break_glass", "days")
    rows = [
        {
            **{column: getattr(row, column) for column in columns},
            "first": show_nanos(row.first_unix_nano),
            "last": show_nanos(row.last_unix_nano),
        }
        for row in answer.rows
    ]
    if as_json:
        emit({"activity": rows}, as_json=True)
        return
    shown = (*columns, "first", "last")
    table(shown, [[row[column] for column in shown] for row in rows], empty="no activity")


def _hours(text: str) -> tuple[int, int]:
    begin, dash, end = text.partition("-")
    if dash and begin.isdecimal() and end.isdecimal() and max(int(begin), int(end)) <= 24:
        return int(begin), int(end)
    raise usage(f"{text} is not a part of the day", "--work-hours 6-20")
