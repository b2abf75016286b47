"""`sealward audit prove`: the proof that an event is in the log."""

from __future__ import annotations

import base64
import sys
import uuid
from pathlib import Path
from typing import Annotated

import typer

from sealward.cli.audit.common import Event, event_id, read_vkeys
from sealward.cli.errors import CliError
from sealward.cli.options import DEFAULT, Dir, Json
from sealward.cli.output import check_writable, emit, line
from sealward.cli.suite import Suite


def prove(
    event: Event,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the proof here.")
    ] = None,
    directory: Dir = DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the C2SP tlog-proof that an event is in the log, checked before it is printed.

    Its `extra` line holds 32 zero bytes in place of the salt, which went to the caller alone.
    """
    from sealward.api.audit.v1 import audit_pb2
    from sealward.api.audit.v1.audit_pb2_grpc import AuditServiceStub
    from sealward.cli.connect import CALL_SECONDS, Admin
    from sealward.cli.rpc import calling
    from sealward.tlog.errors import TlogError
    from sealward.tlog.leaf import SALT_SIZE
    from sealward.tlog.receipt import format_receipt, open_receipt

    suite = Suite.at(directory)
    if output is not None:
        check_writable(output)
    with calling("proving the event"), Admin(suite).channel("audit") as channel:
        answer = AuditServiceStub(channel).GetReceipt(
            audit_pb2.GetReceiptRequest(event_id=event_id(event)), timeout=CALL_SECONDS
        )
    receipt = answer.receipt
    proof = format_receipt(
        receipt.log_index, receipt.path, receipt.leaf, bytes(SALT_SIZE), answer.checkpoint
    )
    try:
        opened = open_receipt(proof, read_vkeys(suite.vkey_file))
    except TlogError as error:
        raise CliError(f"the proof does not hold: {error}") from None
    if output is not None:
        output.write_bytes(proof)
    if as_json:
        emit(
            {
                "event_id": str(uuid.UUID(bytes=opened.event_id)),
                "log_index": opened.index,
                "size": opened.checkpoint.size,
                "origin": opened.checkpoint.origin,
                "proof": base64.b64encode(proof).decode(),
            },
            as_json=True,
        )
    elif output is None:
        sys.stdout.write(proof.decode())
    else:
        line(f"entry {opened.index} of {opened.checkpoint.size}: {output}")
