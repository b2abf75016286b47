"""The one error that a handler may raise, and the one that stops a start."""

from __future__ import annotations

from sealward.kit.reasons import CODES, Code, Reason


class SealwardError(Exception):
    """A call that cannot be answered, with a stable reason.

    `message` goes to the caller: it names fields, never values, and never quotes another
    exception's text. `field` is the path of the field that was wrong, empty where none applies.
    `retry_after` (seconds) becomes google.rpc.RetryInfo.
    """

    def __init__(
        self, reason: Reason, message: str, *, field: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after = retry_after

    @property
    def code(self) -> Code:
        """The gRPC status of the reason."""
        return CODES[self.reason]


class StartupError(Exception):
    """The service cannot start. Its text is one line that says what to do; it holds no secret."""
