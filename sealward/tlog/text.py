"""Strict base64 and decimal numbers, as the C2SP text formats ask for.

Each value has one spelling only: a flipped bit in a text never decodes to the same value.
"""

from binascii import a2b_base64, b2a_base64


def encode_base64(data: bytes) -> str:
    """Return standard base64 with padding (RFC 4648 section 4)."""
    return b2a_base64(data, newline=False).decode("ascii")


def decode_base64(text: str) -> bytes:
    """Decode standard base64; raises ValueError for anything but its one canonical spelling."""
    data = a2b_base64(text)
    # The decoder passes over foreign characters and loose bits; the way back does not.
    if b2a_base64(data, newline=False) != text.encode("ascii"):
        raise ValueError("base64 is not canonical")
    return data


def decode_decimal(text: str) -> int:
    """Decode an ASCII decimal without sign or leading zeroes, below 2**63; raises ValueError."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or (text[0] == "0" != text):
        raise ValueError("not a plain decimal number")
    number = int(text)
    if number >> 63:
        raise ValueError("number is too large")
    return number
