"""Floor 5: steps strung together. What a step does is decided in the rooms below."""
