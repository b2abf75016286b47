"""Generated package sealward.api.gateway; see protos/."""
