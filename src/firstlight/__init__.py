"""firstlight: recommendations that work for items nobody has clicked yet."""

__version__ = "0.1.0"
