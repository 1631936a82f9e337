"""Floor 3: exact full ranking of anything that scores, its metrics, and tests of differences between runs."""
