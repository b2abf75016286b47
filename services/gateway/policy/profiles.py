"""Profiles: policies that are shipped beside a set, for a deployment to add to its own."""

from __future__ import annotations

from pathlib import Path

from services.gateway.policy.interface import PolicyError

PROFILES = ("second-factor",)
"""Their names; each is a file beside this one."""

_FOLDER = Path(__file__).parent


def with_profile(text: str, name: str) -> str:
    """Return a policy set with a profile's policies at its end; as it is where they are there.

    Raises PolicyError for an unknown name.
    """
    if name not in PROFILES:
        raise PolicyError(f"there is no such profile; there are {', '.join(PROFILES)}")
    more = (_FOLDER / f"{name}.cedar").read_text(encoding="utf-8")
    return text if more in text else f"{text.rstrip()}\n\n{more}"
