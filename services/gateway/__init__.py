"""The gateway: the public API, sessions, users, policy, and the path of every prediction."""
