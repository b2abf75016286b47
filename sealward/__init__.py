"""Sealward: safeguarded inference whose every answer carries a verifiable receipt."""

__version__ = "0.1.0"
