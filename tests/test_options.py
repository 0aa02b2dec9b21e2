"""Options as configuration files and schedules give them, and values that come back."""

import copy
import io
from collections import UserList
from enum import Enum

import numpy as np
import pytest
import torch

from clip_fusion_loss import (
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    StructureLoss,
)
from clip_fusion_loss.options import OPTIONS
from conftest import draw_images, make_criterion


class Reduction(str, Enum):
    NONE = "none"


CASES = [
    ("direction_weight", np.float32(0.5), 0.5),
    ("direction_weight", np.float64(0.5), 0.5),
    ("direction_weight", np.int64(2), 2),
    ("direction_weight", torch.tensor(0.5), 0.5),
    ("direction_weight", torch.tensor(2), 2),
    ("direction_weight", np.array(0.5), 0.5),
    ("regularizer_weight", torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    ("num_patches", np.int32(3), 3),
    ("num_patches", torch.tensor(3), 3),
    ("patch_scale", [0.5, 0.75], (0.5, 0.75)),
    ("patch_scale", np.array([0.5, 0.75]), (0.5, 0.75)),
    ("patch_scale", torch.tensor([0.5, 0.75]), (0.5, 0.75)),
    ("patch_scale", UserList([0.5, 0.75]), (0.5, 0.75)),  # as OmegaConf's lists are
    ("data_range", [np.float32(0), np.float32(255)], (0.0, 255.0)),
    ("min_patch_entropy", np.float32(5.5), 5.5),
    ("patch_chunk", np.int64(4), 4),
    ("patch_chunk", np.str_("auto"), "auto"),
    ("reduction", np.str_("sum"), "sum"),
    ("reduction", Reduction.NONE, "none"),
    ("precision", np.str_("fp32"), "fp32"),
    ("compile", np.bool_(False), False),
]


@pytest.mark.parametrize(("name", "value", "plain"), CASES)
def test_kept_as_plain_python_values(encoder, name, value, plain):
    kept = [LanguageDrivenFusionLoss(encoder=encoder, **{name: value})]
    if name != "compile":
        kept.append(make_criterion(encoder))
        setattr(kept[1], name, value)
    for criterion in kept:
        stored = getattr(criterion, {"compile": "compile_encoder"}.get(name, name))
        assert stored == plain
        assert type(stored) is type(plain)
        # As a training writes its settings and, in a safe way, reads them again.
        file = io.BytesIO()
        torch.save(stored, file)
        file.seek(0)
        assert torch.load(file, weights_only=True) == plain


def test_they_compute_what_plain_ones_do(encoder):
    images = draw_images()
    given = {name: value for name, value, _ in CASES if name not in ("data_range", "reduction")}
    plain = {name: value for name, _, value in CASES if name not in ("data_range", "reduction")}
    assert make_criterion(encoder, **given)(*images) == make_criterion(encoder, **plain)(*images)


def test_a_list_that_changes_later_does_not(encoder):
    scale = [0.5, 0.75]
    criterion = make_criterion(encoder, patch_scale=scale)
    scale[0] = 7.0
    assert criterion.patch_scale == (0.5, 0.75)


def test_regularizers_too():
    kept = IntensityGradientLoss(np.float32(0.5)).gradient_weight
    assert kept == 0.5
    assert type(kept) is float


def test_a_weight_that_learns_is_refused_with_the_remedy(encoder):
    criterion = make_criterion(encoder)
    with pytest.raises(TypeError, match="carry no gradient: pass value.item()"):
        criterion.direction_weight = torch.nn.Parameter(torch.ones(()))
    assert not list(criterion.parameters())


class TestWhatIsGivenOutIsTakenBack:
    def test_options(self, encoder):
        criterion = make_criterion(encoder, patch_scale=[0.5, 0.6], regularizer=None)
        options = {name: getattr(criterion, name) for name in OPTIONS}
        options["compile"] = options.pop("compile_encoder")
        again = LanguageDrivenFusionLoss(criterion.objective, encoder=criterion.encoder, **options)
        for name in OPTIONS:
            assert getattr(again, name) == getattr(criterion, name)
            if name != "compile_encoder":
                setattr(again, name, getattr(criterion, name))

    @pytest.mark.parametrize(
        "given_out",
        [
            lambda criterion: criterion.objective,
            lambda criterion: criterion.objective.fused,
            lambda criterion: list(criterion.objective.fused),
            lambda criterion: criterion.fusion_model,
            lambda criterion: criterion.fusion_model.objective,
            lambda criterion: np.array(criterion.objective.fused).tolist(),
        ],
    )
    def test_objectives(self, encoder, given_out):
        mine = FusionObjective(["a sharp image", "a detailed image"], visible="a photo")
        criterion = make_criterion(encoder, objective=mine)
        expected = criterion(*draw_images())
        given = given_out(criterion)
        for put_back in (
            lambda: criterion.set_objective(given),
            lambda: setattr(criterion, "objective", given),
        ):
            put_back()
            criterion.generator.manual_seed(1)
            assert criterion(*draw_images()) == expected
            assert criterion.objective == mine
        if not isinstance(given, list | tuple):  # those say nothing of the sources
            assert make_criterion(encoder, objective=given).objective == mine
        else:
            assert make_criterion(encoder, objective=given).objective.fused == mine.fused

    def test_numpys_texts_become_plain(self, encoder):
        criterion = make_criterion(encoder, objective=np.str_("a sharp image"))
        criterion.set_objective([np.str_("a dark image"), "a dim image"])
        assert [type(text) for text in criterion.objective.fused] == [str, str]

    def test_sources_and_vocabulary(self, encoder):
        images = draw_images()
        criterion = make_criterion(encoder)
        sources = copy.deepcopy(criterion.embed_sources(*images[1:]))
        assert criterion(*images, sources=sources) == make_criterion(encoder)(*images)


def test_those_of_the_structure_loss():
    loss = StructureLoss(
        window=np.int64(7), flat_energy=torch.tensor(0.25), layout_weight=np.float32(0.5)
    )
    kept = (loss.window, loss.flat_energy, loss.layout_weight)
    assert kept == (7, 0.25, 0.5)
    assert [type(value) for value in kept] == [int, float, float]
