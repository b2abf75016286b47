"""Client assertions of workloads (SMART Backend Services): a key, and what signs with it.

Needs nothing of a server; the clock and the id are passed in where tests want them.
"""

from __future__ import annotations

import json
import time
import uuid

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from sealward.client.errors import ProfileError

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_SECONDS = 120


def new_key() -> tuple[bytes, bytes]:
    """Draw an EC P-384 key; return the private JWK and the JWKS to register, both as JSON."""
    key = ECKey.generate_key("P-384", auto_kid=True)
    private = {**key.as_dict(private=True), "alg": "ES384", "use": "sig"}
    public = {**key.as_dict(private=False), "alg": "ES384", "use": "sig"}
    return (
        json.dumps(private, indent=2).encode() + b"\n",
        json.dumps({"keys": [public]}, indent=2).encode() + b"\n",
    )


def sign_assertion(private_jwk: bytes, client: str, audience: str) -> str:
    """Return a client assertion, good for one use within two minutes.

    The key is EC P-384 or RSA and has a kid. Raises ProfileError for any other.
    """
    try:
        values = json.loads(private_jwk)
        kind, key_id = values["kty"], values["kid"]
        key: ECKey | RSAKey
        if kind == "EC":
            key, algorithm = ECKey.import_key(values), "ES384"
        else:
            key, algorithm = RSAKey.import_key(values), "RS384"
        now = int(time.time())
        claims = {
            "iss": client, "sub": client, "aud": audience, "jti": str(uuid.uuid4()), "iat": now,
            "exp": now + _SECONDS,
        }  # fmt: skip
        header = {"alg": algorithm, "kid": key_id, "typ": "JWT"}
        return jwt.encode(header, claims, key, algorithms=[algorithm])
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        raise ProfileError("the key is no private JWK of type RSA or EC P-384 with a kid") from None
