"""FusionObjective: texts in, tuples of texts out."""

import dataclasses

import pytest

from clip_fusion_loss import FusionObjective


def test_defaults_are_the_papers_texts():
    objective = FusionObjective()
    assert objective.fused == ("a clear image with detailed background and salient objects",)
    assert objective.visible == ("a visible gray image",)
    assert objective.infrared == ("an infrared image",)


def test_texts_and_ensembles_become_tuples():
    objective = FusionObjective(fused=["a sharp photo", "a clear photo"], visible="a photo")
    assert objective.fused == ("a sharp photo", "a clear photo")
    assert objective.visible == ("a photo",)


def test_equal_texts_are_equal_objectives():
    assert FusionObjective("a") == FusionObjective(["a"])
    assert hash(FusionObjective("a")) == hash(FusionObjective(["a"]))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FusionObjective().fused = "other"


@pytest.mark.parametrize("field", ["fused", "visible", "infrared"])
@pytest.mark.parametrize("value", ["", "   ", [], ["a text", ""]])
def test_empty_texts_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        FusionObjective(**{field: value})


@pytest.mark.parametrize("field", ["fused", "visible", "infrared"])
@pytest.mark.parametrize("value", [None, 3, b"bytes", ["a", 1], {"a": 1}, {"a"}])
def test_other_types_are_refused(field, value):
    with pytest.raises(TypeError, match=f"`{field}`"):
        FusionObjective(**{field: value})


@pytest.mark.parametrize("field", ["visible", "infrared"])
def test_fused_text_of_a_modality_is_refused(field):
    with pytest.raises(ValueError, match=f"`fused` and `{field}`"):
        FusionObjective(**{"fused": "the same", field: "the same"})
