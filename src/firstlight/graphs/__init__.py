"""Floor 1: sparse propagation. Knows index arrays, not datasets."""
