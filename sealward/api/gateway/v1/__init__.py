"""Generated package sealward.api.gateway.v1; see protos/."""
