"""The errors of the client.

Three families under `ClientError`: the profile cannot be used (`ProfileError`), the call was
answered with an error (`CallError`), or the answer cannot be trusted (`TrustError`). Messages name
fields, sizes and files; they never carry values of a request, a token or a password.
"""

from __future__ import annotations

from sealward.kit.reasons import Code


class ClientError(Exception):
    """Base of every error that the client raises of its own."""


class ProfileError(ClientError):
    """The profile folder is incomplete, damaged or open to others; the text says which file."""


class NotLoggedInError(ClientError):
    """There is no session: call `login` first."""


class CallError(ClientError):
    """The call was answered with an error, or not at all.

    `code` is the gRPC status. `reason` is the stable name from Sealward's list, such as
    `POLICY_DENIED`, empty when the error comes from the transport. `field` is the path of the field
    that was wrong. `event_id`, `log_index` and `origin` (the log's name) say where the refusal is
    recorded and `receipt` proves it (verified; None where the call got none: nothing was released).
    `outcome` is `denied` or `failed` where a receipt says so. `retry_after` is in seconds.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        incident: str = "",
        event_id: str = "",
        log_index: int | None = None,
        receipt: bytes | None = None,
        outcome: str = "",
        origin: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.incident = incident
        self.event_id = event_id
        self.log_index = log_index
        self.receipt = receipt
        self.outcome = outcome
        self.origin = origin
        self.retry_after = retry_after


class DeniedError(CallError):
    """Who asks, or for what, is not permitted (UNAUTHENTICATED or PERMISSION_DENIED)."""


class InvalidRequestError(CallError):
    """The request is wrong and will be wrong again; `field` names what."""


class UnavailableError(CallError):
    """Nothing was answered and the same call may succeed later; see `retry_after`."""


class TrustError(ClientError):
    """An answer arrived and must not be used: what should prove it does not."""


class MissingReceiptError(TrustError):
    """The answer came without a receipt, or without what ties the receipt to it."""


class WrongReceiptError(TrustError):
    """The receipt does not hold, or is about another call; `__cause__` says what failed first."""


class ConsistencyUnavailableError(TrustError):
    """The receipt holds, but no proof could be had that the log only grew since the last one.

    Not a proof of wrongdoing: the gateway could not be asked. The checkpoint stays to be checked
    with the next call.
    """


class ForkError(TrustError):
    """The log showed two histories.

    `seen` and `shown` are the two signed checkpoints (whole notes) that cannot both belong to one
    log that only grows; together they are evidence for anyone who has the verifier key. The client
    that raised it refuses every further answer.
    """

    def __init__(self, message: str, seen: bytes, shown: bytes) -> None:
        super().__init__(message)
        self.seen = seen
        self.shown = shown
