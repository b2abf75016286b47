"""Generated package sealward.api.oip; see protos/."""
