"""Generated package sealward.api.oip.v2; see protos/."""
