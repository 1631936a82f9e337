"""What is said of settings that there are not, or that do not fit."""

from __future__ import annotations

import pytest

from firstlight.core.errors import InputError
from firstlight.training.config import build_config


@pytest.mark.parametrize(
    ("setting", "problem", "hint"),
    [
        (
            "training.lrr=1",
            "there is no setting 'training.lrr'",
            "did you mean 'training.lr'? known in training: ep",
        ),
        ("lr=0.1", "there is no setting 'lr'", "did you mean 'training.lr'? known: seed, model"),
        ("modle.dim=8", "there is no setting 'modle'", "did you mean 'model'?"),
        (
            "model.dimm=8",
            "there is no setting 'model.dimm'",
            "did you mean 'model.dim'? known in model: name, dim",
        ),
        ("model.item_layer=2", "there is no setting 'model.item_layer'", "did you mean 'model.item_layers'?"),
        (
            "views.text.colums=[a]",
            "there is no setting 'views.text.colums'",
            "did you mean 'views.text.columns'?",
        ),
        ("xyzzy=1", "there is no setting 'xyzzy'", "known: seed"),
        ("training.lr=0", "config field training.lr: it should be greater than 0 (got 0)", None),
        (
            "training.metric=recall",
            "config field training.metric: this is not of the form that it must have (got 'recall')",
            "for example recall@20",
        ),
    ],
)
def test_a_setting_is_named_with_what_was_meant(setting, problem, hint):
    with pytest.raises(InputError) as caught:
        build_config(model="mhcr", overrides=[setting])
    assert caught.value.problem == problem
    assert (caught.value.hint or "").startswith(hint or "")
    assert "reference.md" not in str(caught.value)
    assert "Extra inputs" not in str(caught.value)
    assert "[1-9]" not in str(caught.value)


def test_examples_are_values_that_fit():
    for example in ("recall@20", "ndcg@10", "cold-recall@20", "harmonic-recall@20"):
        assert build_config(overrides=[f"training.metric={example}"]).training.metric == example
