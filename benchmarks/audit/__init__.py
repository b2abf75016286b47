"""Benchmarks of the audit log: `python -m benchmarks.audit`."""
