"""Measuring stock against fast: the protocol, the cases, parity, and how results are shown."""
