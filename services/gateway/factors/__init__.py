"""Second factors of people: one-time passwords and recovery codes.

`totp.py` and `recovery.py` are pure; `store.py` keeps sealed secrets; `factors.py` puts them
together.
"""
