"""The safeguards check: 32 safeguards as tests of a running deployment.

A row (rows/) asks a Deployment (deployment.py) and notes what it saw (row.py). The runner gives
each row its state, the report (report.py) is what the audit log vouches for. Nothing in here knows
how a deployment is reached: that is `sealward.cli.check`.
"""
