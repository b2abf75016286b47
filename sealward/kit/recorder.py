"""Records events of a service that decide no release: durable in the spool, then in the log.

For events whose record has to be there before something goes on (an answer to a caller), the
gateway appends to audit and waits; here the spool on the own disk is what is waited for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from sealward.kit import attributes as names
from sealward.kit.spans import (
    STATUS_ERROR,
    STATUS_OK,
    AttributeValue,
    SpanHead,
    SpanKind,
    TraceParent,
    attribute,
)
from sealward.kit.spool import Build, Spool

_PREFIX = "sealward."


def _by_keyword() -> dict[str, str]:
    """Attribute names by the keyword that stands for them: `model_name` → `sealward.model.name`."""
    return {name.removeprefix(_PREFIX).replace(".", "_"): name for name in names.ALLOWED}


def new_event_id(clock: Callable[[], int] = time.time_ns) -> bytes:
    """Return a fresh UUIDv7 (RFC 9562 section 5.7), 16 bytes."""
    drawn = bytearray(secrets.token_bytes(10))
    drawn[0] = drawn[0] & 0x0F | 0x70
    drawn[2] = drawn[2] & 0x3F | 0x80
    return (clock() // 1_000_000).to_bytes(6, "big") + bytes(drawn)


class Recorder:
    """Writes events into a spool. Thread-safe.

    `producer` says who speaks (`keys`, `inference`, …); the spool numbers what it says.
    """

    def __init__(
        self, spool: Spool, producer: str, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._spool = spool
        self._producer = attribute(names.PRODUCER_ID, producer)
        if spool.instance:
            self._producer += attribute(names.PRODUCER_INSTANCE, spool.instance)
        self._clock = clock
        self._names = _by_keyword()
        self._heads = {kind: SpanHead(kind, SpanKind.INTERNAL) for kind in names.EVENT_TYPES}

    def record(
        self,
        event_type: str,
        outcome: str,
        *,
        start_unix_nano: int | None = None,
        parent: TraceParent | None = None,
        **attributes: AttributeValue | None,
    ) -> bytes:
        """Record an event and return its id; when this returns the record is on the disk.

        `outcome` is `ok`, `denied` or `failed`. Attributes are given by their name without
        `sealward.`, with `_` for each dot (`model_name=`, `actor_id=`); None leaves one out. Raise
        TypeError for an attribute or type that is not in kit/attributes.py (a mistake in our own
        code), SealwardError AUDIT_UNAVAILABLE when the spool cannot take the record: then the
        thing that was to be recorded must not happen.
        """
        event_id, build = self.compose(
            event_type,
            outcome,
            start_unix_nano=start_unix_nano,
            end_unix_nano=None,
            parent=parent,
            **attributes,
        )
        self._spool.append(build)
        return event_id

    def compose(
        self,
        event_type: str,
        outcome: str,
        *,
        start_unix_nano: int | None = None,
        end_unix_nano: int | None = None,
        parent: TraceParent | None = None,
        **attributes: AttributeValue | None,
    ) -> tuple[bytes, Build]:
        """Make an event that `keep` records together with others; return its id and the event."""
        head = self._heads.get(event_type)
        if head is None or outcome not in names.OUTCOMES:
            raise TypeError("unknown event type or outcome")
        unknown = sorted(set(attributes) - set(self._names))
        if unknown:
            raise TypeError(f"unknown attributes: {', '.join(unknown)}")
        event_id = new_event_id(self._clock)
        parts = [
            attribute(names.EVENT_TYPE, event_type),
            attribute(names.EVENT_ID, event_id.hex()),
            attribute(names.OUTCOME, outcome),
            self._producer,
        ]
        parts += [
            attribute(self._names[key], value)
            for key, value in attributes.items()
            if value is not None
        ]
        parts.append(STATUS_OK if outcome == "ok" else STATUS_ERROR)
        end = self._clock() if end_unix_nano is None else end_unix_nano
        start = end if start_unix_nano is None else start_unix_nano

        def build(seq: int) -> bytes:
            numbered = (*parts, attribute(names.PRODUCER_SEQ, seq))
            return head.build(min(start, end), end, numbered, parent=parent)

        return event_id, build

    def keep(self, builds: Sequence[Build]) -> None:
        """Record events with one write: when this returns all are on the disk, or none is.

        Raise SealwardError as `record`.
        """
        self._spool.extend(builds)
