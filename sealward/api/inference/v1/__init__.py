"""Generated package sealward.api.inference.v1; see protos/."""
