"""Generated package sealward.api.audit.v1; see protos/."""
