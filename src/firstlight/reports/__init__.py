"""Floor 5: pictures from plain numbers and run folders alone."""
