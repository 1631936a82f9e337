"""Floor 0: what every room shares and nobody would look for elsewhere.

Nothing is re-exported here on purpose: importing ``firstlight.core.errors`` must not pull in torch.
"""
