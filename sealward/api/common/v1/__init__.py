"""Generated package sealward.api.common.v1; see protos/."""
