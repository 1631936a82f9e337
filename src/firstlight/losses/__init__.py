"""Floor 1: ranking losses, temperature policies and the negatives that they contrast with.

Pure functions of tensors and small policy objects; nothing here knows a model or an optimiser.
"""
