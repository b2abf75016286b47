"""`sealward audit prove`: the proof that an event is in the log."""

from __future__ import annotations

import base64
import sys
import uuid
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealward.cli.audit.common import Event, PolicyFile, cosigners, event_id, read_policy
from sealward.cli.errors import CliError, usage
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_writable, emit, line
from sealward.cli.suite import Suite

if TYPE_CHECKING:
    from sealward.api.audit.v1.audit_pb2 import GetReceiptResponse
    from sealward.tlog.policy import Policy


class Format(StrEnum):
    """How a proof is written."""

    TLOG_PROOF = "tlog-proof"
    COSE = "cose"


def prove(
    event: Event,
    form: Annotated[
        Format, typer.Option("--format", help="C2SP tlog-proof, or COSE receipt (RFC 9942).")
    ] = Format.TLOG_PROOF,
    cosigned: Annotated[
        bool, typer.Option("--cosigned", help="Against a checkpoint that witnesses cosigned.")
    ] = False,
    policy: PolicyFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the proof here.")
    ] = None,
    leaf: Annotated[
        Path | None, typer.Option("--leaf", metavar="FILE", help="Write the entry itself here.")
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the proof that an event is in the log, checked before it is printed.

    With --cosigned the checkpoint must satisfy --policy, or the suite's own witness policy. The
    `extra` line of a tlog-proof holds 32 zero bytes in place of the salt, which went to the
    caller alone, and the entry. A COSE receipt does not hold the entry: `--leaf` writes it.
    """
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling

    suite = Suite.at(directory)
    wanted = audit_pb2.GetReceiptRequest(
        event_id=event_id(event), cosigned=cosigned or policy is not None, cose=form is Format.COSE
    )
    asked = read_policy(policy or suite.policy_file) if wanted.cosigned else None
    if form is Format.COSE and output is None and not as_json and sys.stdout.isatty():
        raise usage("a COSE receipt is no text", "--output FILE, or --json")
    for file in (output, leaf):
        if file is not None:
            check_writable(file)
    with calling("proving the event"), Admin(suite).channel("audit") as channel:
        answer = AuditServiceStub(channel).GetReceipt(wanted, timeout=CALL_SECONDS)
    proof, shown = _check(suite, wanted, answer, asked)
    if output is not None:
        output.write_bytes(proof)
    if leaf is not None:
        leaf.write_bytes(answer.receipt.leaf)
    if as_json:
        emit(
            {**shown, "format": str(form), "proof": base64.b64encode(proof).decode()}, as_json=True
        )
    elif output is None:
        sys.stdout.buffer.write(proof)
        sys.stdout.flush()
    else:
        line(f"entry {shown['log_index']} of {shown['size']}: {output}")


def _check(
    suite: Suite, wanted: Any, answer: GetReceiptResponse, policy: Policy | None
) -> tuple[bytes, dict[str, Any]]:
    """Verify what came; return the proof and what is shown of it. Raise CliError."""
    from sealward.cli.audit.reading import head_of
    from sealward.tlog.checkpoint import Checkpoint
    from sealward.tlog.cose import verify_receipt
    from sealward.tlog.errors import TlogError
    from sealward.tlog.leaf import SALT_SIZE
    from sealward.tlog.note import parse_note
    from sealward.tlog.policy import open_cosigned
    from sealward.tlog.receipt import format_receipt, open_receipt

    receipt = answer.receipt
    try:
        note = parse_note(answer.checkpoint)
        head = head_of(suite, Checkpoint.parse(note.text).origin, answer.checkpoint)
        proof = format_receipt(
            receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), answer.checkpoint
        )
        opened = open_receipt(proof, head.verifiers, head.origin)
        if wanted.cose:
            proof = answer.cose
            made = verify_receipt(proof, receipt.leaf, head.verifiers)
            if made.index != receipt.log_index or made.size != opened.checkpoint.size:
                raise CliError("the COSE receipt is about another entry", verified=False)
    except TlogError as error:
        raise CliError(f"the proof does not hold: {error}", verified=False) from None
    if opened.event_id != wanted.event_id:
        raise CliError("the proof is about another event", verified=False)
    by: list[dict[str, object]] = []
    if policy is not None:
        try:
            by = cosigners(open_cosigned(answer.checkpoint, policy, head.verifiers))
        except TlogError as error:
            raise CliError(
                f"the checkpoint is not cosigned as the policy asks: {error}", verified=False
            ) from None
    return proof, {
        "event_id": str(uuid.UUID(bytes=opened.event_id)),
        "log_index": opened.index,
        "size": opened.checkpoint.size,
        "origin": opened.checkpoint.origin,
        **({"cosigned": by} if policy is not None else {}),
    }
