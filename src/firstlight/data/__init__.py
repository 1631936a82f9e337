"""Floor 1: click logs and catalogues as frozen arrays, their file formats, splits and a generated world."""
