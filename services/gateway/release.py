"""Outputs that a role may not see, taken out of a response before anybody signs for it. Pure.

The response is cut as bytes: what may go out goes out as the model's service wrote it. A parameter
says plainly what was left out; names of outputs are the model's own and no secret.
"""

from __future__ import annotations

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.kit.wire import BYTES, bytes_field, last, scan, string_field

WITHHELD_PARAMETER = "sealward_outputs_withheld"
"""Response parameter: the names of the outputs that were left out, with commas."""

# Fields of ModelInferResponse and of its outputs (Open Inference Protocol v2).
_PARAMETERS, _OUTPUTS, _RAW = 4, 5, 6
_NAME = 1


def withhold(body: bytes, allowed: frozenset[str]) -> tuple[bytes, tuple[str, ...]]:
    """Return a ModelInferResponse without the outputs that are not allowed, and their names.

    Raises OUTPUTS_WITHHELD when none is left, and ValueError for a response that is out of form:
    one in which outputs and raw contents do not belong together must not go out.
    """
    pieces, names = _cut(body)
    withheld = tuple(name for name in names if name not in allowed)
    if not withheld:
        return body, ()
    if len(withheld) == len(names):
        raise SealwardError(
            Reason.OUTPUTS_WITHHELD, "this role may see none of the outputs that were asked for"
        )
    parts: list[bytes] = []
    place = {_OUTPUTS: 0, _RAW: 0}
    for number, value in pieces:
        if number in place:
            name = names[place[number]]
            place[number] += 1
            if name not in allowed:
                continue
        parts.append(bytes_field(number, value))
    parts.append(_said(withheld))
    return b"".join(parts), withheld


def _cut(body: bytes) -> tuple[list[tuple[int, bytes]], list[str]]:
    """Return the fields of a response with their numbers, and the names of its outputs."""
    pieces: list[tuple[int, bytes]] = []
    names: list[str] = []
    raws = 0
    for number, wire_type, start, end in scan(body):
        if wire_type != BYTES or number > _RAW:
            raise ValueError("the response has a field that no response has")
        value = body[start:end]
        if number == _OUTPUTS:
            names.append((last(value, _NAME) or b"").decode())
        raws += number == _RAW
        pieces.append((number, value))
    if raws not in (0, len(names)):
        raise ValueError("outputs and raw contents of the response do not belong together")
    return pieces, names


def _said(withheld: tuple[str, ...]) -> bytes:
    # parameters is a map: an entry has key = 1 and value = 2; InferParameter.string_param is 3.
    value = bytes_field(2, string_field(3, ",".join(withheld)))
    return bytes_field(_PARAMETERS, string_field(1, WITHHELD_PARAMETER) + value)
