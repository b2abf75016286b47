"""Protobuf wire format, read and written as bytes.

For the places that must not parse a whole message: the gateway's hot path reads three fields of a
request and forwards the rest untouched, spans are written directly, and a client that wraps another
library's stubs reads one parameter of a response. The format is the one of
https://protobuf.dev/programming-guides/encoding/; where that leaves room, this module does what
the protobuf runtime (upb) does, because both sides of a policy decision must read the same name:

- of a repeated scalar field the last one counts (`last`), in whatever order the fields come;
- a field with another wire type than asked for is an unknown field and is skipped;
- tags and lengths are at most five bytes, groups are skipped and at most 100 deep;
- field number 0, which the format forbids and upb lets pass, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT = 0
FIXED64 = 1
BYTES = 2
_GROUP_START = 3
_GROUP_END = 4
FIXED32 = 5

_MAX_DEPTH = 100
_MAX_TAG = 2**32 - 1
_MAX_LENGTH = 2**31 - 1
_MASK64 = 2**64 - 1
_NO_LIMIT = 2**31
# Walking a field takes about a microsecond, and a field as little as two bytes of a message.
_MAX_HEAD_FIELDS = 4096

# Field numbers that ModelInferRequest and ModelInferResponse share (Open Inference Protocol v2).
OIP_MODEL_NAME = 1
OIP_MODEL_VERSION = 2
OIP_ID = 3
OIP_PARAMETERS = 4


Readable = bytes | memoryview
"""What is read here; of a memoryview nothing is copied."""


class WireError(ValueError):
    """The bytes are not a protobuf message. Its text never quotes them."""


def read_varint(data: Readable, pos: int, *, most: int = 10) -> tuple[int, int]:
    """Read a base-128 varint of at most `most` bytes; return value (64 bits) and next position."""
    result = 0
    for shift in range(0, 7 * most, 7):
        try:
            byte = data[pos]
        except IndexError:
            raise WireError("truncated varint") from None
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _MASK64, pos
    raise WireError("varint too long")


def scan(data: Readable, most: int = _NO_LIMIT) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end) of each top-level field, without copying.

    `data[start:end]` is the field's value: the varint's or fixed value's own bytes, or the content
    of a length-delimited field. A group is yielded once, with its content. Raise WireError where
    the bytes end or are out of form, and after `most` fields, those in groups included.
    """
    pos = 0
    size = len(data)
    while pos < size:
        most -= 1
        if most < 0:
            raise WireError("too many fields")
        tag = data[pos]
        if tag < 0x80:
            pos += 1
        else:
            tag, pos = _read_tag(data, pos)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise WireError("field number 0")
        if wire_type == BYTES:
            length = data[pos] if pos < size else 0x80
            if length < 0x80:
                start = pos + 1
            else:
                length, start = _read_length(data, pos)
            end = start + length
            if end > size:
                raise WireError("truncated field")
            yield number, BYTES, start, end
            pos = end
        elif wire_type == _GROUP_START:
            end, after, most = _group(data, pos, number, most)
            yield number, _GROUP_START, pos, end
            pos = after
        else:
            end = _skip(data, pos, wire_type)
            yield number, wire_type, pos, end
            pos = end


def _read_tag(data: Readable, pos: int) -> tuple[int, int]:
    tag, pos = read_varint(data, pos, most=5)
    if tag > _MAX_TAG:
        raise WireError("tag too large")
    return tag, pos


def _read_length(data: Readable, pos: int) -> tuple[int, int]:
    length, pos = read_varint(data, pos, most=5)
    if length > _MAX_LENGTH:
        raise WireError("length too large")
    return length, pos


def _skip(data: Readable, pos: int, wire_type: int) -> int:
    if wire_type == VARINT:
        return read_varint(data, pos)[1]
    if wire_type == FIXED64:
        end = pos + 8
    elif wire_type == FIXED32:
        end = pos + 4
    elif wire_type == BYTES:
        length, start = _read_length(data, pos)
        end = start + length
    else:
        raise WireError("wire type out of place")
    if end > len(data):
        raise WireError("truncated field")
    return end


def _group(data: Readable, pos: int, number: int, most: int) -> tuple[int, int, int]:
    """Return where the group's content ends, where the next field begins, the rest of `most`."""
    open_groups = [number]
    while True:
        most -= 1
        if most < 0:
            raise WireError("too many fields")
        before = pos
        tag, pos = _read_tag(data, pos)
        inner, wire_type = tag >> 3, tag & 7
        if not inner:
            raise WireError("field number 0")
        if wire_type == _GROUP_START:
            open_groups.append(inner)
            if len(open_groups) > _MAX_DEPTH:
                raise WireError("groups too deep")
        elif wire_type == _GROUP_END:
            if open_groups.pop() != inner:
                raise WireError("group ends out of place")
            if not open_groups:
                return before, pos, most
        else:
            pos = _skip(data, pos, wire_type)


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (field number, wire type, value) of each top-level field.

    Values are ints for varints (64 bits, unsigned) and fixed fields (unsigned, little-endian), and
    bytes for everything else. Raise WireError.
    """
    for number, wire_type, start, end in scan(data):
        if wire_type == VARINT:
            yield number, wire_type, read_varint(data, start)[0]
        elif wire_type in (FIXED32, FIXED64):
            yield number, wire_type, int.from_bytes(data[start:end], "little")
        else:
            yield number, wire_type, data[start:end]


def last(data: bytes, number: int) -> bytes | None:
    """Return the value of the last length-delimited field `number`, or None. Raise WireError."""
    found = None
    for seen, wire_type, start, end in scan(data):
        if seen == number and wire_type == BYTES:
            found = (start, end)
    return None if found is None else data[found[0] : found[1]]


def oip_head(message: bytes) -> tuple[str, str, str]:
    """Return (model_name, model_version, id) of a ModelInferRequest or ModelInferResponse.

    These are fields 1 to 3 of both. Walks every top-level field, whose number does not grow with
    the tensors, and copies nothing else. Raise WireError when the message is out of form, has more
    than some thousands of such fields (one message of nothing else would hold up everybody) or one
    of the three is not UTF-8 (a proto3 string must be).
    """
    name = version = ident = b""
    for number, wire_type, start, end in scan(message, _MAX_HEAD_FIELDS):
        if number <= OIP_ID and wire_type == BYTES:
            if number == OIP_MODEL_NAME:
                name = message[start:end]
            elif number == OIP_MODEL_VERSION:
                version = message[start:end]
            else:
                ident = message[start:end]
    try:
        return name.decode(), version.decode(), ident.decode()
    except UnicodeDecodeError:
        raise WireError("a string is not UTF-8") from None


def oip_string_parameter(message: bytes, key: str) -> str | None:
    """Return the top-level string parameter `key` of an OIP message, or None. Raise WireError.

    `parameters` is field 4, a map<string, InferParameter>; `string_param` is field 3 of the value.
    Of a key that is there twice the last one counts.
    """
    wanted = key.encode()
    value = None
    for number, wire_type, start, end in scan(message):
        if number == OIP_PARAMETERS and wire_type == BYTES:
            entry = message[start:end]
            if last(entry, 1) == wanted:
                value = last(last(entry, 2) or b"", 3)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise WireError("a string is not UTF-8") from None


def varint(value: int) -> bytes:
    """Encode an unsigned integer below 2^64."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire_type: int) -> bytes:
    """Encode a field's tag."""
    return varint(number << 3 | wire_type)


def bytes_field(number: int, value: bytes) -> bytes:
    """Encode a length-delimited field: bytes or an embedded message. Written also when empty."""
    return tag(number, BYTES) + varint(len(value)) + value


def string_field(number: int, value: str) -> bytes:
    """Encode a string field. Written also when empty."""
    return bytes_field(number, value.encode())


def varint_field(number: int, value: int) -> bytes:
    """Encode an int64, uint64, bool or enum field; negative numbers as two's complement."""
    return tag(number, VARINT) + varint(value & _MASK64)


def fixed64_field(number: int, value: int) -> bytes:
    """Encode a fixed64 field."""
    return tag(number, FIXED64) + value.to_bytes(8, "little")


def fixed32_field(number: int, value: int) -> bytes:
    """Encode a fixed32 field."""
    return tag(number, FIXED32) + value.to_bytes(4, "little")
