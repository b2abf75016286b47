"""The service chassis: everything that the four services share and that is no trust logic."""
