"""Where a sealed file is damaged: the first part of it that does not verify, as a range of bytes.

For the person who has to restore it. A part is authenticated as a whole, so no byte within it can
be named. What is found says nothing about the content.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealward.seal.context import EncryptionContext
from sealward.seal.errors import SealBrokenError
from sealward.seal.esdk import FINAL_HEAD, FRAME_HEAD, TAG_BYTES, Message
from sealward.seal.objects import ObjectSealer

_FINAL = b"\xff" * 4
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes [start, end) of a file, and which part of it they are."""

    start: int
    end: int
    part: str

    def __str__(self) -> str:
        if self.end <= self.start:
            return f"it ends at byte {self.start}, in the middle of its {self.part}"
        return f"bytes {self.start} to {self.end - 1} ({self.part}) do not verify"


def find_damage(sealer: ObjectSealer, context: EncryptionContext, sealed: bytes) -> Damage | None:
    """Return where an object (AWS Encryption SDK message) is damaged; None where it is not.

    A header that does not verify may also be of another key or context.
    """
    header = sealer.header_size(context)
    if len(sealed) < header:
        return Damage(len(sealed), len(sealed), "header")
    try:
        message = sealer.read(context, sealed)
    except SealBrokenError:
        return Damage(0, header, "header")
    place, number = message.size, 1
    while place < len(sealed):
        size = _frame_size(message, sealed, place)
        part = f"frame {number}"
        if size is None or place + size > len(sealed):
            return Damage(len(sealed), len(sealed), part)
        frame = memoryview(sealed)[place : place + size]
        if not _opens(message, number, frame):
            return Damage(place, place + size, part)
        place, number = place + size, number + 1
        if frame[:4] == _FINAL:
            return Damage(place, len(sealed), "behind its end") if place < len(sealed) else None
    return Damage(place, place, f"frame {number}")


def _frame_size(message: Message, sealed: bytes, place: int) -> int | None:
    """Return the size that a frame has by its head; None when the head is not complete."""
    if sealed[place : place + 4] != _FINAL:
        return message.stride
    head = sealed[place : place + FINAL_HEAD]
    if len(head) < FINAL_HEAD:
        return None
    length = int.from_bytes(head[-_LENGTH_BYTES:], "big")
    # A length that no frame has is damaged itself.
    return FINAL_HEAD + min(length, message.frame_bytes) + TAG_BYTES


def _opens(message: Message, number: int, frame: memoryview) -> bool:
    out = memoryview(bytearray(message.frame_bytes))
    try:
        if frame[:4] == _FINAL:
            message.open_final(number, frame, out)
        else:
            message.open_frame(number, frame, out[: len(frame) - FRAME_HEAD - TAG_BYTES])
    except SealBrokenError:
        return False
    return True


def find_age_damage(sealed: bytes, said: str) -> Damage | None:
    """Return where an age file is damaged, by what its reader said; None: nothing shows that it is.

    The reader (rage) verifies the header's MAC once a secret fits, then the payload.
    """
    end = _age_header(sealed)
    if said == "decryption error" and end is not None:
        return Damage(end, len(sealed), "payload")
    if said == "failed to fill whole buffer":
        return Damage(len(sealed), len(sealed), "header" if end is None else "payload")
    if said.startswith(("Header is invalid", "Header MAC is invalid", "Unknown age format")):
        return Damage(0, end or len(sealed), "header")
    return None


def _age_header(sealed: bytes) -> int | None:
    """Return where the header ends: behind the line that begins with `---`."""
    mac = sealed.find(b"\n---")
    end = sealed.find(b"\n", mac + 1)
    return None if mac < 0 or end < 0 else end + 1
