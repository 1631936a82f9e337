"""Floor 6: the command line. It parses, calls, draws progress and prints; it computes nothing.

Importing this package imports neither torch nor polars: ``firstlight --help`` answers at once. Every
command imports what it needs when it runs.
"""

from firstlight.cli.app import main

__all__ = ["main"]
