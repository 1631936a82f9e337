"""Floor 3: raw items (texts, covers, ready-made features) to rows that models read, with a presence mask.

A view is fitted on warm items only, saved with the run, and applied unchanged to items that arrive later
(:class:`firstlight.views.viewset.ViewSet`). A row depends on its own item and on the fitted state, never on the rows
beside it.
"""
