"""The command `sealward`: one file per noun, and the supervisor behind `sealward up`."""
