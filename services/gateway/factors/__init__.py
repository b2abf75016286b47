"""Second factors of people: one-time passwords, security keys and recovery codes.

`totp.py`, `recovery.py` and `webauthn.py` are pure; `store.py` keeps what is enrolled, secrets
sealed; `factors.py` and `keys.py` put them together.
"""
