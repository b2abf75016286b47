"""The built-in witness: cosigns the checkpoints of this deployment's logs (c2sp.org/tlog-witness).

What it has cosigned lies on the disk of the keys service, so that a log that is rolled back on the
disk of the audit service is found out.
"""
