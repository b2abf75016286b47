"""Generated package sealward.api.audit; see protos/."""
