"""Generated package sealward.api.keys; see protos/."""
