"""Documents to pairs, to packed batches, to masks."""
