"""Benchmarks of sealing and of the keys service: `python -m benchmarks.keys`."""
