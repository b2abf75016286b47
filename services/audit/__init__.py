"""The audit service: the log, its index, receipts and review."""
