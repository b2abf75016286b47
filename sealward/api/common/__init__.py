"""Generated package sealward.api.common; see protos/."""
