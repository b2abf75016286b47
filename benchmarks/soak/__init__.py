"""Long runs that a system has to come through without a failed call."""
