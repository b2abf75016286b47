"""The part of CBOR that a COSE receipt needs, in its one deterministic spelling (RFC 8949, 4.2.1).

Integers, byte and text strings, arrays, maps, tags and null. The decoder takes nothing that the
encoder would not have written: shortest heads, no indefinite lengths, map keys sorted by their
encoding, nothing behind the value. So a flipped bit never reads as the same value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from sealward.tlog.errors import CborError

MAX_DEPTH = 8
"""Levels of nesting; a receipt has four."""

Value: TypeAlias = Any
"""An int, bytes, a str, None, a sequence of values, a mapping of ints or strs to values, a Tag."""

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)
_NULL = 0xF6
_SIZES: Mapping[int, int] = MappingProxyType({24: 1, 25: 2, 26: 4, 27: 8})


@dataclass(frozen=True, slots=True)
class Tag:
    """A tagged value."""

    number: int
    value: Value


def encode(value: Value) -> bytes:
    """Return the deterministic encoding; raises CborError for what it does not know."""
    match value:
        case None:
            return bytes([_NULL])
        case int() if not isinstance(value, bool):
            return _head(_UINT, value) if value >= 0 else _head(_NINT, -1 - value)
        case bytes():
            written = _head(_BYTES, len(value)) + value
        case str():
            text = value.encode()
            written = _head(_TEXT, len(text)) + text
        case Tag():
            written = _head(_TAG, value.number) + encode(value.value)
        case dict():
            pairs = sorted((encode(key), encode(item)) for key, item in value.items())
            written = _head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)
        case tuple() | list():
            written = _head(_ARRAY, len(value)) + b"".join(map(encode, value))
        case _:
            raise CborError("value is of a type that has no place here")
    return written


def decode(data: bytes) -> Value:
    """Return the one value that `data` is; raises CborError.

    Arrays come as tuples, maps as dicts with integer or text keys.
    """
    value, end = _decode(data, 0, MAX_DEPTH)
    if end != len(data):
        raise CborError("bytes follow the value")
    return value


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for code, size in _SIZES.items():
        if number < 1 << 8 * size:
            return bytes([major << 5 | code]) + number.to_bytes(size, "big")
    raise CborError("number is too large")


def _read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Return major type, number and next position."""
    if at >= len(data):
        raise CborError("value is cut short")
    major, low = data[at] >> 5, data[at] & 0x1F
    at += 1
    if low < 24:
        return major, low, at
    size = _SIZES.get(low)
    if size is None or at + size > len(data):
        raise CborError("head is cut short or of a form that has no place here")
    number = int.from_bytes(data[at : at + size], "big")
    if number < 24 or (size > 1 and number < 1 << 4 * size):
        raise CborError("number is not in its shortest form")
    return major, number, at + size


def _decode(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if not depth:
        raise CborError("values are nested too deeply")
    if at < len(data) and data[at] == _NULL:
        return None, at + 1
    major, number, at = _read_head(data, at)
    if major == _UINT:
        return number, at
    if major == _NINT:
        return -1 - number, at
    read = _READERS.get(major)
    if read is None:
        raise CborError("value is of a type that has no place here")
    return read(data, at, number, depth)


def _string(data: bytes, at: int, length: int, _depth: int) -> tuple[bytes, int]:
    if length > len(data) - at:
        raise CborError("string is cut short")
    return data[at : at + length], at + length


def _text(data: bytes, at: int, length: int, depth: int) -> tuple[str, int]:
    raw, end = _string(data, at, length, depth)
    try:
        return raw.decode(), end
    except UnicodeDecodeError as error:
        raise CborError("text is not UTF-8") from error


def _array(data: bytes, at: int, length: int, depth: int) -> tuple[tuple[Value, ...], int]:
    items = []
    for _ in range(_count(data, at, length)):
        item, at = _decode(data, at, depth - 1)
        items.append(item)
    return tuple(items), at


def _map(data: bytes, at: int, length: int, depth: int) -> tuple[dict[int | str, Value], int]:
    found: dict[int | str, Value] = {}
    previous = b""
    for _ in range(_count(data, at, length)):
        begin = at
        key, at = _decode(data, at, depth - 1)
        if not isinstance(key, int | str):
            raise CborError("map key is neither a number nor a text")
        if data[begin:at] <= previous:
            raise CborError("map keys are not in order")
        previous = data[begin:at]
        found[key], at = _decode(data, at, depth - 1)
    return found, at


def _tag(data: bytes, at: int, number: int, depth: int) -> tuple[Tag, int]:
    value, at = _decode(data, at, depth - 1)
    return Tag(number, value), at


def _count(data: bytes, at: int, length: int) -> int:
    # Every item has a byte at least: a length that cannot be is refused before anything is read.
    if length > len(data) - at:
        raise CborError("array or map is cut short")
    return length


_READERS: Mapping[int, Callable[[bytes, int, int, int], tuple[Value, int]]] = MappingProxyType(
    {_BYTES: _string, _TEXT: _text, _ARRAY: _array, _MAP: _map, _TAG: _tag}
)
