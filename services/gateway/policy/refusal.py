"""Why a decision went against a call, as far as the caller can do something about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.gateway.policy.interface import Facts, Policy


def refusal(
    policy: Policy,
    roles: Sequence[str],
    rpc: str,
    model: str,
    purpose: str,
    facts: Facts,
    message: str,
) -> SealwardError:
    """Return STEP_UP_REQUIRED where a fresh second factor would do, else POLICY_DENIED."""
    if facts.second_factor or facts.kind != "user":
        return SealwardError(Reason.POLICY_DENIED, message)
    proven = replace(facts, second_factor=True, multi_factor=True)
    if not policy.permits(roles, rpc, model, purpose, proven):
        return SealwardError(Reason.POLICY_DENIED, message)
    said = (
        "prove the second factor anew: step up"
        if facts.multi_factor
        else "this needs a second factor: enrol one, or step up"
    )
    return SealwardError(Reason.STEP_UP_REQUIRED, said)
