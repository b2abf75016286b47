"""`sealward check --fips`: which cryptographic libraries do the work, and in which mode.

Says NOT VALIDATED: none of them is a FIPS 140-3 validated module in the form that it comes in.
"""

from __future__ import annotations

import importlib.metadata
import ssl
from pathlib import Path
from typing import Any

NOT_VALIDATED = "NOT VALIDATED"
_KERNEL = Path("/proc/sys/crypto/fips_enabled")
_STATEMENT = (
    "No module below is FIPS 140-3 validated as it is installed here. Where validation is asked "
    "for, end TLS in a validated proxy and keep the keys in a validated module (Vault Enterprise, "
    "PKCS#11)."
)
# What each does for us. Algorithms that SP 800-131A does not approve are named as such.
_USES = {
    "cryptography": "certificates (ECDSA P-256), objects (AES-256-GCM, HKDF), the log (Ed25519)",
    "grpcio": "TLS 1.3 of callers and services (BoringSSL; X25519 is no curve of SP 800-56A)",
    "tink": "AES-256-GCM of audit entries (Tink and BoringSSL)",
    "pyrage": "the root key's file (age: X25519, ChaCha20-Poly1305: not approved)",
    "argon2-cffi": "passwords (argon2id: not approved, no approved one resists GPUs as well)",
}


def libraries() -> dict[str, Any]:
    """Return the libraries with versions and what they are for."""
    found = []
    for name, use in _USES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append({"library": name, "version": version, "use": use, "validation": NOT_VALIDATED})
    found.append(
        {
            "library": "Python ssl", "version": ssl.OPENSSL_VERSION,
            "use": "TLS 1.3 of metrics listeners, Redis and Vault", "validation": NOT_VALIDATED,
        }
    )  # fmt: skip
    from cryptography.hazmat.backends.openssl.backend import backend

    return {
        "validation": NOT_VALIDATED,
        "statement": _STATEMENT,
        "openssl_of_cryptography": backend.openssl_version_text(),
        "openssl_fips_mode": bool(backend._fips_enabled),  # noqa: SLF001 - no public question
        "kernel_fips_mode": _kernel(),
        "libraries": found,
    }


def text(found: dict[str, Any]) -> str:
    """Return the list for people."""
    lines = [f"FIPS 140-3: {NOT_VALIDATED}", found["statement"], ""]
    for library in found["libraries"]:
        lines.append(f"{library['library']} {library['version']}: {library['validation']}")
        lines.append(f"    {library['use']}")
    lines += [
        "",
        f"OpenSSL of cryptography: {found['openssl_of_cryptography']}",
        f"its FIPS mode: {_on(found['openssl_fips_mode'])}",
        f"kernel FIPS mode: {_on(found['kernel_fips_mode'])}",
    ]
    return "\n".join(lines)


def _kernel() -> bool | None:
    try:
        return _KERNEL.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return None


def _on(mode: bool | None) -> str:
    return "unknown" if mode is None else "on" if mode else "off"
