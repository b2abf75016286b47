"""Witness keys that are the same on every run, and policies of them."""

from collections.abc import Callable
from hashlib import sha256

from sealward.tlog.cosignature import Cosigner, ed25519_cosigner, ml_dsa_44_cosigner

NOW = 1_790_000_000


def seed(name: str) -> bytes:
    """Return a private key that depends on the name alone."""
    return sha256(b"test witness " + name.encode()).digest()


def ed25519(name: str, clock: Callable[[], int] = lambda: NOW) -> Cosigner:
    """Return a witness's Ed25519 cosigner."""
    return ed25519_cosigner(name, seed(name), clock)


def ml_dsa(name: str, clock: Callable[[], int] = lambda: NOW) -> Cosigner:
    """Return a witness's ML-DSA-44 cosigner."""
    return ml_dsa_44_cosigner(name, seed(name), clock)


def policy_text(quorum: str, *lines: str) -> bytes:
    """Return a policy of these lines and a quorum."""
    return "".join(f"{line}\n" for line in (*lines, f"quorum {quorum}")).encode()
