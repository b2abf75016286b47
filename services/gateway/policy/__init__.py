"""Who may do what: role × RPC × model × purpose of use, decided by Cedar policies.

`interface.py` is what the rest of the gateway knows; `cedar.py` is the engine behind it, with the
vocabulary of `schema.py`; `shipped.cedar` is the policy set of a new deployment.
"""

from __future__ import annotations

from services.gateway.policy.cedar import SHIPPED, CedarPolicy, load_policy
from services.gateway.policy.interface import (
    NO_FACTS,
    NO_RULE,
    RULE_FAILED,
    Decision,
    Facts,
    Policy,
    PolicyError,
)
from services.gateway.policy.schema import POLICY_RPCS

__all__ = [
    "NO_FACTS",
    "NO_RULE",
    "POLICY_RPCS",
    "RULE_FAILED",
    "SHIPPED",
    "CedarPolicy",
    "Decision",
    "Facts",
    "Policy",
    "PolicyError",
    "load_policy",
]
