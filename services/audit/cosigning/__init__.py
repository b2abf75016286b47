"""Asks witnesses to cosign what is published, and learns from them of a rollback."""
