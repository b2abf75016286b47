"""Key bytes that are shown to nobody who does not ask for them by name."""

from __future__ import annotations

import hmac
from typing import NoReturn, final


@final
class Secret:
    """Bytes of a key. What prints, logs, formats, serialises or copies objects never sees them.

    `reveal()` gives them, for immediate use: they are put into a cipher, not into an attribute.
    Python cannot erase memory, so this keeps keys out of sight, not out of memory.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        """Compare in constant time; a secret equals another secret only."""
        if isinstance(other, Secret):
            return hmac.compare_digest(self._value, other._value)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a table of hashes would compare in another way

    def __repr__(self) -> str:
        return "Secret()"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not serialised")
