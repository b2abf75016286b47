"""Generated package sealward.api.keys.v1; see protos/."""
