"""Errors of this package. None of them carries a key, a plaintext or a ciphertext."""

from __future__ import annotations


class SealError(Exception):
    """Base of every error here."""


class ContextError(SealError):
    """A part of an encryption context is not of its form."""


class SealBrokenError(SealError):
    """Something sealed does not open: wrong key, wrong context, or it was changed.

    One text for all of these, so that an attacker who tries learns nothing from the answer.
    """


class UnlockError(SealError):
    """The unlock secret cannot be used, or does not open the root key.

    `said`: what the age library said, where it did not open.
    """

    def __init__(self, text: str, said: str = "") -> None:
        super().__init__(text)
        self.said = said


class LeaseExpiredError(SealError):
    """A leased key is past its bound of `time`, `messages` or `bytes`, or it was `forgotten`."""

    def __init__(self, text: str, bound: str = "messages") -> None:
        super().__init__(text)
        self.bound = bound
