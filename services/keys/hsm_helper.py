"""`python -m services.keys.hsm_helper`: one use of a key in a PKCS#11 token, then it ends.

A vendor's module is loaded here and nowhere else: it may hang, crash, or start threads of its own,
and the keys service goes on. One JSON object comes on standard input, one goes to standard output.

What is sealed is a JWE (RFC 7516, compact form): with an AES key `dir` and `A256GCM`, where the
token encrypts itself; with an RSA key `RSA-OAEP` and `A256GCM`, where it unwraps the content key.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealward.kit.errors import StartupError
from sealward.kit.hardening import harden
from services.keys.files import read_private

_IV_BYTES, _TAG_BYTES, _KEY_BYTES = 12, 16, 32
_PARTS = 5


class TokenError(Exception):
    """The token cannot be used. The text says why; it holds neither PIN nor key."""


class BrokenError(Exception):
    """The token does not open what it was given: another key, or it was changed."""


def main() -> NoReturn:
    """Answer one request. The process is left without the module's own clean-up, which may hang."""
    harden()
    try:
        request = json.loads(sys.stdin.buffer.read())
        data = base64.b64decode(request["data"])
        answer = {"data": _text(_use(request, data))}
    except BrokenError:
        answer = {"broken": "the key in the token does not open it"}
    except (TokenError, StartupError) as error:
        answer = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a module may raise anything; its text is not passed on
        answer = {"error": f"the PKCS#11 module failed ({type(error).__name__})"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)


def _use(request: dict[str, Any], data: bytes) -> bytes:
    try:
        import pkcs11
    except ImportError:
        raise TokenError("python-pkcs11 is not installed: pip install sealward[pkcs11]") from None
    from pkcs11 import exceptions

    try:
        library = pkcs11.lib(request["module"])
    except Exception:  # noqa: BLE001 - a wrong file raises RuntimeError, another one PKCS11Error
        raise TokenError(f"{request['module']} is not a PKCS#11 module that loads") from None
    pin = _pin(Path(request["pin_file"]))
    try:
        token = library.get_token(token_label=request["token"])
        with token.open(user_pin=pin) as session:
            key = _find(session, request["key"])
            if request["verb"] == "seal":
                return _seal(key, request["key"], data)
            return _open(key, data)
    except exceptions.NoSuchToken:
        raise TokenError(f"there is no token {request['token']}") from None
    except exceptions.MultipleTokensReturned:
        raise TokenError(f"more than one token is called {request['token']}") from None
    except exceptions.PinLocked:
        raise TokenError(f"the PIN of token {request['token']} is locked") from None
    except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange):
        raise TokenError(f"the PIN of token {request['token']} is wrong") from None


def _find(session: Any, label: str) -> Any:
    """Find the key of a label; it must be one that never leaves the token."""
    from pkcs11 import Attribute, ObjectClass

    found = [
        key
        for kind in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY)
        for key in session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label})
    ]
    if len(found) != 1:
        raise TokenError(f"the token has {len(found)} keys that are called {label}, not one")
    key = found[0]
    if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
        raise TokenError(f"the key {label} can be taken out of the token: make another one")
    return key


def _is_aes(key: Any) -> bool:
    from pkcs11 import Attribute, KeyType

    kind = key[Attribute.KEY_TYPE]
    if kind is KeyType.AES:
        if key[Attribute.VALUE_LEN] != _KEY_BYTES:
            raise TokenError("the AES key has to have 256 bits")
        return True
    if kind is KeyType.RSA:
        return False
    raise TokenError("the key has to be AES or RSA")


def _seal(key: Any, label: str, data: bytes) -> bytes:
    from pkcs11 import GCMParams, Mechanism

    iv = secrets.token_bytes(_IV_BYTES)
    if _is_aes(key):
        header = _header("dir", label)
        mixed = key.encrypt(
            data,
            mechanism=Mechanism.AES_GCM,
            mechanism_param=GCMParams(iv, header, _TAG_BYTES * 8),
        )
        wrapped = b""
    else:
        header = _header("RSA-OAEP", label)
        content_key = secrets.token_bytes(_KEY_BYTES)
        mixed = AESGCM(content_key).encrypt(iv, data, header)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 - RFC 7518
        wrapped = _public(key).encrypt(content_key, oaep)
    return b".".join(
        (header, *map(_encode, (wrapped, iv, mixed[:-_TAG_BYTES], mixed[-_TAG_BYTES:])))
    )


def _open(key: Any, sealed: bytes) -> bytes:
    from pkcs11 import MGF, GCMParams, Mechanism
    from pkcs11.exceptions import PKCS11Error

    parts = sealed.split(b".")
    aes = _is_aes(key)
    try:
        header = json.loads(_decode(parts[0]))
        wrapped, iv, body, tag = map(_decode, parts[1:])
        whole = (
            len(parts) == _PARTS
            and header["enc"] == "A256GCM"
            and header["alg"] == ("dir" if aes else "RSA-OAEP")
            and (len(iv), len(tag)) == (_IV_BYTES, _TAG_BYTES)
        )
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise BrokenError
    try:
        if aes:
            plain: bytes = key.decrypt(
                body + tag,
                mechanism=Mechanism.AES_GCM,
                mechanism_param=GCMParams(iv, parts[0], _TAG_BYTES * 8),
            )
            return plain
        content_key = key.decrypt(
            wrapped,
            mechanism=Mechanism.RSA_PKCS_OAEP,
            mechanism_param=(Mechanism.SHA_1, MGF.SHA1, None),
        )
        return AESGCM(content_key).decrypt(iv, body + tag, parts[0])
    except (PKCS11Error, InvalidTag, ValueError):
        # Modules tell a wrong tag by many names.
        raise BrokenError from None


def _public(key: Any) -> rsa.RSAPublicKey:
    from pkcs11 import Attribute

    modulus, exponent = key[Attribute.MODULUS], key[Attribute.PUBLIC_EXPONENT]
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
    return numbers.public_key()


def _header(algorithm: str, label: str) -> bytes:
    return _encode(json.dumps({"alg": algorithm, "enc": "A256GCM", "kid": label}).encode())


def _pin(path: Path) -> str:
    try:
        return read_private(path, frozenset({0, os.geteuid()})).decode("utf-8").rstrip("\r\n")
    except FileNotFoundError:
        raise TokenError(f"the PIN file {path} does not exist") from None
    except UnicodeDecodeError:
        raise TokenError(f"the PIN file {path} is not UTF-8 text") from None


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


if __name__ == "__main__":
    main()
