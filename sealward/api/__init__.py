"""Generated package sealward.api; see protos/."""
