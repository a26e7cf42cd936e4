"""One module an op; each has CASES."""
