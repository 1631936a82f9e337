"""Floor 2: images, vision transformers, and what trains them without labels.

Nothing here knows of recommendation: covers arrive as images with ids and leave as rows. The objectives (MAE, I-JEPA,
MIM-Refiner) meet the training loop through :class:`firstlight.vision.objective.Objective`.
"""
