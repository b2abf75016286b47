"""Logins at an identity provider: OpenID Connect, authorisation code with PKCE.

`idtoken.py` and `mapping.py` are pure; `egress.py` is the only thing that opens a connection, to
the provider and nothing else; `provider.py` knows its addresses and keys; `identities.py` keeps
who is who; `logins.py` puts them together.
"""
