"""Workloads: programs that log in with a signed assertion (SMART Backend Services).

`assertion.py` is pure; `clients.py` keeps who is registered with which keys; `spent.py` remembers
what counts once.
"""
