"""Floor 2: images, vision transformers, and what trains them without labels.

Nothing here knows of recommendation: covers arrive as images with ids and leave as rows. The objectives (MAE, I-JEPA,
MIM-Refiner) meet the training loop through :class:`firstlight.vision.objective.Objective`.
"""

from firstlight.core.registry import Registry

#: Objectives of pre-training; see :mod:`firstlight.vision.pretraining`.
OBJECTIVES = Registry(
    "pre-training objective",
    {
        "mae": "firstlight.vision.mae:MAE",
        "i-jepa": "firstlight.vision.ijepa:IJEPA",
    },
)
