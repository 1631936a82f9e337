"""Floor 4: loops, negatives, optimisers, checkpoints and the run folder. Emits events; never prints."""
