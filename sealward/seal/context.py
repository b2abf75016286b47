"""The encryption context: what a key or a sealed object is for.

It is bound to every sealed thing as additional authenticated data and stands in it in clear, so it
holds opaque ids only: never a name, a patient reference or anything else about a person. On opening
it is compared for equality with what the opener claims; a subset is not enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sealward.seal.errors import ContextError

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PURPOSE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_RESOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+=-]{0,191}")

# Sealed keys and sealed objects are told apart by the schema, so that one never opens as the other.
KEY_SCHEMA = "sealward/key/v1"
OBJECT_SCHEMA = "sealward/object/v1"


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """Tenant, purpose and resource id. Raises ContextError, naming the part that is wrong.

    tenant: `[a-z0-9-]`, at most 63; purpose: `[a-z0-9-]`, at most 32, such as `audit-segment`;
    resource: `[A-Za-z0-9._@:/+=-]`, at most 192, such as `breast-cancer@1`.
    """

    tenant: str
    purpose: str
    resource: str

    def __post_init__(self) -> None:
        for name, form in (("tenant", _TENANT), ("purpose", _PURPOSE), ("resource", _RESOURCE)):
            if not form.fullmatch(getattr(self, name)):
                raise ContextError(f"{name} of the encryption context is not of its form")

    def about(self, resource: str) -> EncryptionContext:
        """Return the same context for another resource of the same tenant and purpose."""
        return replace(self, resource=resource)

    def pairs(self, schema: str) -> Mapping[str, str]:
        """Return the key-value pairs that are bound to a sealed thing of this schema."""
        return {
            "purpose": self.purpose,
            "resource": self.resource,
            "schema": schema,
            "tenant": self.tenant,
        }
