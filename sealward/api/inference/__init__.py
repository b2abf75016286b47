"""Generated package sealward.api.inference; see protos/."""
