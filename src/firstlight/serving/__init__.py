"""Floor 4: the catalogue as it is served: vectors of a finished run, and items added or removed since."""
