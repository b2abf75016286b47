"""A receipt that stands without trust in the log alone: the same entry, cosigned by witnesses.

Pure: bytes in, a verdict or an error out. The receipt of an answer carries the log's signature
alone; once witnesses have cosigned a later checkpoint, the gateway proves the entry against that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from google.protobuf.message import DecodeError

from sealward.api.gateway.v1.gateway_pb2 import GetReceiptRequest, GetReceiptResponse
from sealward.client.checkpoints import Seen
from sealward.client.errors import WrongReceiptError
from sealward.client.verify import Proof
from sealward.tlog.errors import PolicyError, TlogError
from sealward.tlog.note import Verifier
from sealward.tlog.policy import Policy, open_cosigned, printable
from sealward.tlog.proof import TlogProof
from sealward.tlog.receipt import Receipt, format_receipt, open_receipt

METHOD = "/sealward.api.gateway.v1.LogService/GetReceipt"


@dataclass(frozen=True, slots=True)
class CosignedReceipt:
    """A receipt whose checkpoint satisfies a witness policy.

    `receipt` is a C2SP tlog-proof with the salt of the call, so that it proves what the first one
    did. `witnesses`: when each witness of the policy cosigned, seconds since the epoch.
    """

    receipt: bytes
    event_id: str
    log_index: int
    origin: str
    size: int
    witnesses: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """A receipt that is to be had cosigned: what it says, and the request that asks for it.

    `extra` is its extra data: the salt of the call and the entry.
    """

    request: bytes
    policy: Policy
    mine: Receipt = field(repr=False)
    extra: bytes = field(repr=False)


def ask(receipt: bytes, policy: Policy | bytes, vkeys: Sequence[Verifier]) -> Asked:
    """Read a receipt and a policy (C2SP tlog-policy).

    Raises ValueError for a policy that is none, WrongReceiptError for a receipt that does not hold.
    """
    try:
        wanted = policy if isinstance(policy, Policy) else Policy.parse(policy)
    except PolicyError as error:
        raise ValueError(f"not a witness policy: {error}") from None
    try:
        opened = open_receipt(receipt, vkeys)
        entry = TlogProof.parse(receipt).extra or b""
    except TlogError as error:
        raise WrongReceiptError(str(error)) from error
    request = GetReceiptRequest(event_id=opened.event_id, cosigned=True).SerializeToString()
    return Asked(request, wanted, opened, entry)


def read(asked: Asked, body: bytes, vkeys: Sequence[Verifier]) -> tuple[CosignedReceipt, Proof]:
    """Verify what came; return it, and what the book of checkpoints is to look at.

    Raises WrongReceiptError: another entry, another place, or too few cosignatures.
    """
    mine = asked.mine
    try:
        came = TlogProof.parse(GetReceiptResponse.FromString(body).receipt)
        # Salt and entry are the caller's own; the proof has to hold for that entry.
        text = format_receipt(
            came.index, came.path, asked.extra[len(mine.salt) :], mine.salt, came.checkpoint
        )
        opened = open_receipt(text, vkeys, mine.checkpoint.origin)
        cosigned = open_cosigned(came.checkpoint, asked.policy, vkeys)
    except DecodeError:
        raise WrongReceiptError("the answer is not a well-formed message") from None
    except TlogError as error:
        raise WrongReceiptError(str(error)) from error
    if opened.index != mine.index:
        raise WrongReceiptError("the entry stands at another place than its receipt said")
    event_id = str(UUID(bytes=opened.event_id))
    head = opened.checkpoint
    found = CosignedReceipt(
        text,
        event_id,
        opened.index,
        head.origin,
        head.size,
        {printable(c.witness.name): c.time for c in cosigned.cosignatures},
    )
    seen = Seen(head.size, head.root, opened.note)
    return found, Proof(text, event_id, opened.index, "", "", head.origin, seen)
