"""Purposes of use: the codes of HL7's value set v3-PurposeOfUse, without its abstract root.

Code system v3-ActReason, version 2018-08-12.
"""

from __future__ import annotations

from collections.abc import Iterable

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason

PURPOSES = frozenset(
    {
        "BIORCH", "BTG", "CAREMGT", "CLINTRCH", "CLINTRCHNPC", "CLINTRCHPC", "CLINTRL", "CLMATTCH",
        "COC", "COVAUTH", "COVERAGE", "DISASTER", "DONAT", "DSRCH", "ELIGDTRM", "ELIGVER",
        "ENROLLM", "ERTREAT", "ETREAT", "FAMRQT", "FRAUD", "GOV", "HACCRED", "HCOMPL", "HDECD",
        "HDIRECT", "HDM", "HLEGAL", "HMARKT", "HOPERAT", "HOUTCOMS", "HPAYMT", "HPRGRP",
        "HQUALIMP", "HRESCH", "HSYSADMIN", "HTEST", "LABELING", "MEMADMIN", "METAMGT", "MILCDM",
        "MILDCRG", "PATADMIN", "PATRQT", "PATSFTY", "PERFMSR", "POARCH", "POPHLTH", "PRECLINTRCH",
        "PUBHLTH", "PWATRNY", "RECORDMGT", "REMITADV", "SUPNWK", "SYSDEV", "THREAT", "TRAIN",
        "TRANSRCH", "TREAT",
    }
)  # fmt: skip

# 45 CFR 164.501; the same division as the accounting of disclosures makes.
_GROUPS = {
    "treatment": frozenset({"TREAT", "ETREAT", "BTG", "ERTREAT", "COC", "CAREMGT"}),
    "payment": frozenset(
        {
            "HPAYMT", "CLMATTCH", "COVAUTH", "COVERAGE", "ELIGDTRM", "ELIGVER", "ENROLLM",
            "REMITADV",
        }
    ),
    "operations": frozenset(
        {
            "HOPERAT", "HACCRED", "HCOMPL", "HOUTCOMS", "HPRGRP", "HQUALIMP", "HSYSADMIN",
            "LABELING", "METAMGT", "MEMADMIN", "PATADMIN", "PATSFTY", "PERFMSR", "RECORDMGT",
            "SYSDEV", "HTEST", "TRAIN",
        }
    ),
    "research": frozenset(
        {
            "BIORCH", "CLINTRCH", "CLINTRCHNPC", "CLINTRCHPC", "CLINTRL", "DSRCH", "HRESCH",
            "POARCH", "PRECLINTRCH", "TRANSRCH",
        }
    ),
    "emergency": frozenset({"ETREAT", "BTG", "ERTREAT", "DISASTER"}),
}  # fmt: skip


def groups_of(purpose: str) -> tuple[str, ...]:
    """Return the groups that policies may name a purpose by, such as `treatment`, sorted."""
    return tuple(sorted(group for group, members in _GROUPS.items() if purpose in members))


# What a call of this role is for when it does not say. No other role has a default.
DEFAULTS = {"clinician": "TREAT"}
# What a call under broken glass is for; the role beside others says only that it may be broken.
_EMERGENCY_ROLE, _EMERGENCY = "break-glass", "ETREAT"


def purpose_of(asked: str, roles: Iterable[str]) -> str:
    """Return the purpose of a call: the one it names, or the default of its roles.

    Raises PURPOSE_REQUIRED when it names none and its roles have no default, or more than one.
    """
    if asked:
        return asked
    roles = list(roles)
    found = {DEFAULTS[role] for role in roles if role in DEFAULTS}
    if roles == [_EMERGENCY_ROLE]:
        found = {_EMERGENCY}
    if len(found) != 1:
        raise SealwardError(
            Reason.PURPOSE_REQUIRED, "this role has no default purpose", field="sealward-purpose"
        )
    return found.pop()
