"""`sealward audit explain`: one event on one page. The reading is itself recorded."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealward.cli.audit.common import Event, event_id
from sealward.cli.errors import usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_writable, emit
from sealward.cli.suite import Suite, write_private

if TYPE_CHECKING:
    from sealward.cli.connect import Admin
    from sealward.evidence.event import Event as Opened
    from sealward.evidence.explain import Card, Step

_MOST_STEPS = 50


def explain(
    event: Event,
    for_patient: Annotated[
        bool, typer.Option("--for-patient", help="In plain words, without staff.")
    ] = False,
    identified: Annotated[
        bool, typer.Option("--identified", help="The patient in clear, not by pseudonym.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page here as well.")
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Explain one event: who, why, which model, who decided, on what input, with what proof."""
    from sealward.cli.audit.reading import get_event
    from sealward.cli.connect import Admin
    from sealward.evidence import explain as explaining
    from sealward.kit import attributes as names

    if html is not None:
        check_writable(html)
    suite = Suite.at(directory)
    admin = Admin(suite)
    with admin.channel("audit") as channel:
        opened = get_event(suite, channel, event_id(event))
    if not identified:
        opened = opened.pseudonymous()
    if for_patient and not opened.patient:
        raise usage("this event is about no patient", "leave --for-patient out")
    asked, card = _card(admin, opened) if opened.text(names.MODEL_NAME) else (True, None)
    if for_patient:
        page = explaining.for_patient(opened, card)
    else:
        page = explaining.for_reviewer(opened, card, _steps(admin, opened), models_asked=asked)
    if html is not None:
        write_private(html, page.as_html().encode())
    emit({"event_id": opened.id, **page.as_json()}, as_json=as_json, text=page.as_text())


def _card(admin: Admin, opened: Opened) -> tuple[bool, Card | None]:
    """Return whether the models could be listed, and the version that the event names."""
    import grpc

    from sealward.api.inference.v1 import inference_pb2
    from sealward.api.inference.v1.inference_pb2_grpc import InferenceServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.evidence.explain import Card
    from sealward.kit import attributes as names

    try:
        with admin.channel("inference") as channel:
            answer = InferenceServiceStub(channel).ListModels(
                inference_pb2.ListModelsRequest(), timeout=CALL_SECONDS
            )
    except grpc.RpcError:
        # The record is explained without its card: it says so.
        return False, None
    wanted = (opened.text(names.MODEL_NAME), opened.text(names.MODEL_VERSION))
    for model in answer.models:
        if (model.name, model.version) == wanted:
            return True, Card(model.name, model.version, model.digest.hex(), model.manifest_json)
    return True, None


def _steps(admin: Admin, opened: Opened) -> list[Step]:
    """Return the other events of the same trace."""
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS
    from sealward.cli.rpc import calling
    from sealward.evidence.explain import Step

    if not opened.span.trace_id:
        return []
    query = audit_pb2.QueryEventsRequest(
        trace_id=bytes.fromhex(opened.span.trace_id), limit=_MOST_STEPS
    )
    with calling("looking for the trace"), admin.channel("audit") as channel:
        answer = AuditServiceStub(channel).QueryEvents(query, timeout=CALL_SECONDS)
    return [
        Step(
            str(uuid.UUID(bytes=row.event_id)),
            row.time_unix_nano,
            row.type,
            row.outcome,
            row.producer,
        )
        for row in answer.events
        if row.event_id != opened.event_id
    ]
