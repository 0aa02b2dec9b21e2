"""Objectives: the words, the words as directions, banks, one for each image, and files."""

import copy
import json
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
)
from conftest import build_clip, draw_images, make_criterion, named, same_transforms
from reference import Reference


def test_texts_and_ensembles_become_tuples():
    objective = FusionObjective(fused=["a sharp photo", "a clear photo"], visible="a photo")
    assert objective.fused == ("a sharp photo", "a clear photo")
    assert objective.visible == ("a photo",)
    assert FusionObjective("a") == FusionObjective(["a"])
    assert hash(FusionObjective("a")) == hash(FusionObjective(["a"]))


ENSEMBLE = FusionObjective(
    fused=("a clear image", "a sharp photo with detail"), visible="a photo", infrared=("a", "b")
)


def test_equal_vectors_are_refused_with_both_texts(encoder):
    with pytest.raises(ValueError, match=r"An INFRARED image.*an infrared image"):
        EmbeddedFusionModel(FusionObjective("An INFRARED image"), encoder)


@pytest.fixture
def knowing(clip_model, tokenizer):
    """An encoder with a vocabulary."""
    return FrozenCLIP(
        clip_model,
        tokenizer,
        vocabulary={"a", "an", "visible", "infrared", "gray", "image", "dark"},
    )


@pytest.mark.filterwarnings("ignore:the model")
class TestTextsThatSayNothing:
    @pytest.mark.parametrize(
        "text", ["...", "a", "purple elephants", "!?", "\u2026", "an \U0001f525"]
    )
    @pytest.mark.parametrize("role", ["fused", "visible", "infrared"])
    def test_is_said_at_once(self, knowing, text, role):
        words = {
            "fused": "dark",
            "visible": "visible",
            "infrared": "infrared",
            role: ["dark", text],
        }
        objective = FusionObjective(**words)
        criterion = make_criterion(knowing, objective="a dark image")
        for call in (
            lambda: EmbeddedFusionModel(objective, knowing),
            lambda: criterion.set_objective(objective),
            lambda: criterion.embed(["a dark image", objective]),
            lambda: criterion(**named(draw_images()), objectives=["a dark image", objective]),
            lambda: make_criterion(knowing, objective=objective),
        ):
            with pytest.raises(ValueError, match="must have a word that .* knows, .*from_pretrain"):
                call()
        assert criterion.objective == FusionObjective("a dark image")


def test_home_folder(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    EmbeddedFusionModel(ENSEMBLE, encoder).save("~/sharp.safetensors")
    assert (tmp_path / "sharp.safetensors").is_file()
    assert EmbeddedFusionModel.load("~/sharp.safetensors", encoder).objective == ENSEMBLE


NAMED = {"dark": FusionObjective("a dark image"), "mine": ENSEMBLE, "haze": "a haze"}
DARK, MINE, HAZE = NAMED["dark"], ENSEMBLE, FusionObjective("a haze")


def same(model, expected):
    return (
        torch.equal(model.visible_direction, expected.visible_direction)
        and torch.equal(model.infrared_direction, expected.infrared_direction)
        and model.objectives == expected.objectives
    )


DAMAGE = {
    "names gone": lambda metadata, tensors: metadata.pop("names"),
    "a name less": lambda metadata, tensors: metadata.update(names='["a", "b"]'),
    "equal names": lambda metadata, tensors: metadata.update(names='["a", "a", "b"]'),
    "numbers": lambda metadata, tensors: metadata.update(names="[1, 2, 3]"),
    "a text less": lambda metadata, tensors: metadata.update(
        objectives=json.dumps(json.loads(metadata["objectives"])[:2])
    ),
    "no texts": lambda metadata, tensors: (
        metadata.update(objectives="[]", names="[]"), keep_rows(tensors, slice(0))
    ),
    "a row less": lambda metadata, tensors: keep_rows(tensors, slice(2)),
    "a weight less": lambda metadata, tensors: tensors.update(weights=torch.ones(2, 1)),
    "not unit": lambda metadata, tensors: tensors["directions"][2, 0, 1].mul_(2),
    "nan": lambda metadata, tensors: tensors["directions"][2, 0, 1, 3].fill_(torch.nan),
    "infinite": lambda metadata, tensors: tensors["weights"][1].fill_(torch.inf),
    "infinite sum": lambda metadata, tensors: tensors["weights"].fill_(3e38),
    "nan weight": lambda metadata, tensors: tensors["weights"][1].fill_(torch.nan),
    "no weight": lambda metadata, tensors: tensors["weights"][1].zero_(),
    "half": lambda metadata, tensors: tensors.update(directions=tensors["directions"].half()),
    "one direction": lambda metadata, tensors: keep_rows(tensors, 0),
    "a source less": lambda metadata, tensors: tensors.update(
        directions=tensors["directions"][:, :, :1].clone()
    ),
    "a direction gone": lambda metadata, tensors: tensors.pop("directions"),
    "single": lambda metadata, tensors: metadata.update(objective="{}"),
    "no texts of one": lambda metadata, tensors: metadata.update(objectives="[[], {}, {}]"),
    "a weight of text": lambda metadata, tensors: metadata.update(
        objectives='[[[{}, "1"]], {}, {}]'
    ),
    "texts of a number": lambda metadata, tensors: metadata.update(objectives="[1, 2, 3]"),
}  # fmt: skip


def keep_rows(tensors, rows):
    tensors.update({name: tensor[rows].clone() for name, tensor in tensors.items()})


class TestBank:
    @pytest.fixture
    def bank(self, encoder):
        return EmbeddedFusionModel(NAMED, encoder)

    def test_holds_what_single_ones_hold(self, bank, encoder):
        assert (len(bank), bank.names, bank.objectives) == (3, tuple(NAMED), (DARK, MINE, HAZE))
        assert bank.visible_direction.shape == bank.infrared_direction.shape == (3, 24)
        for number, objective in enumerate(bank.objectives):
            single = EmbeddedFusionModel(objective, encoder)
            assert torch.equal(bank.visible_direction[number], single.visible_direction)
            assert torch.equal(bank.infrared_direction[number], single.infrared_direction)
        unnamed = EmbeddedFusionModel(list(NAMED.values()), encoder)
        assert unnamed.names is None
        assert same(unnamed, bank)

    def test_iterates_over_what_it_takes(self, bank):
        assert list(bank) == ["dark", "mine", "haze"]
        assert "mine" in bank
        assert "sharp" not in bank
        assert list(bank[["mine", "dark"]]) == [0, 1]

    @pytest.mark.parametrize("key", ["mine", 1, np.int64(1), np.str_("mine")])
    def test_one(self, bank, encoder, key):
        one = bank[key]
        assert one.objective == MINE
        assert same(one, EmbeddedFusionModel(MINE, encoder))

    @pytest.mark.parametrize(
        "choice",
        [
            ["haze", "dark", "haze"],
            ("haze", 0, 2),
            np.array([2, 0, 2]),
            np.array(["haze", "dark", "haze"]),
            torch.tensor([2, 0, 2], dtype=torch.uint8),
        ],
        ids=str,
    )
    def test_one_for_each_image(self, bank, choice):
        chosen = bank[choice]
        assert chosen.objectives == (HAZE, DARK, HAZE)
        assert torch.equal(chosen.visible_direction, bank.visible_direction[[2, 0, 2]])
        assert torch.equal(chosen.infrared_direction, bank.infrared_direction[[2, 0, 2]])
        assert chosen.encoder_fingerprint == bank.encoder_fingerprint
        assert same(chosen[[1, 1]], bank[["dark", "dark"]])

    def test_of_a_single_objective(self, encoder):
        single = EmbeddedFusionModel(MINE, encoder)
        assert len(single) == 1
        assert single[[0, 0]].objectives == (MINE, MINE)
        assert single[[0, 0]].visible_direction.shape == (2, 24)

    def test_indices_on_a_device_are_not_read(self, bank):
        expected = bank[[2, 0]]
        bank.to("meta")
        chosen = bank[torch.tensor([2, 0]).to("meta")]
        assert chosen.visible_direction.shape == (2, 24)
        assert "2 objectives" in repr(chosen)
        # Texts are looked up when they are asked for, here where that is possible.
        chosen._objectives = partial(chosen._objectives.func, bank.objectives, torch.tensor([2, 0]))
        assert copy.deepcopy(chosen).objectives == chosen.objectives == expected.objectives
        assert bank[torch.tensor([2, 0])].visible_direction.is_meta

    @pytest.mark.parametrize(
        ("choice", "error", "words"),
        [
            ("sharp", KeyError, r"be one of the names \['dark', 'mine', 'haze'\], got 'sharp'"),
            (["dark", "sharp"], KeyError, "got 'sharp'"),
            (3, IndexError, "indices must be from 0 to 2, got 3"),
            ([0, 7, -1, 9], IndexError, "got 7"),
            (torch.tensor([0, 3]), IndexError, "be from 0 to 2, got 3"),
            (torch.tensor([-1]), IndexError, "got -1"),
            ([], ValueError, "got none"),
            (torch.tensor([], dtype=torch.int64), ValueError, "got none"),
            (torch.tensor([[1]]), TypeError, r"keys must be names or indices, got \[1\]"),
            (torch.tensor([0.0]), TypeError, "names or indices, got 0.0"),
            (torch.tensor([True, False]), TypeError, "names or indices, got True"),
            (True, TypeError, "names or indices, got True"),
            ([0.5], TypeError, "names or indices, got 0.5"),
            ({"dark": 1}, TypeError, "be a name, an index"),
            (b"dark", TypeError, "be a name, an index"),
            (slice(0, 2), TypeError, "be a name, an index"),
        ],
        ids=str,
    )
    def test_wrong_choices(self, bank, choice, error, words):
        with pytest.raises(error, match=words):
            bank[choice]

    def test_without_names_or_a_single_objective(self, bank, encoder):
        with pytest.raises(KeyError, match=r"of the names \[\], got 'dark'"):
            EmbeddedFusionModel(list(NAMED.values()), encoder)["dark"]
        with pytest.raises(ValueError, match="a bank of 3; choose"):
            _ = bank.objective

    @pytest.mark.parametrize("wrong", [[], {}, [3], {3: "a"}, {"a": ["b"]}, {"a"}, "a", 3, None])
    def test_wrong_objectives(self, encoder, wrong):
        for call in (make_criterion(encoder).embed, lambda x: EmbeddedFusionModel(x, encoder)):
            with pytest.raises((TypeError, ValueError), match="`objectives?` must"):
                call(wrong)

    @pytest.mark.parametrize("how", ["named", "unnamed", "chosen", "single"])
    def test_save_and_load(self, bank, encoder, tmp_path, how):
        if how == "unnamed":
            bank = EmbeddedFusionModel(list(NAMED.values()), encoder)
        if how == "single":
            bank = bank["mine"]
        if how == "chosen":
            bank = bank[torch.tensor([2, 1, 2, 0])]
        bank.save(tmp_path / "bank.safetensors")
        loaded = EmbeddedFusionModel.load(tmp_path / "bank.safetensors", encoder)
        assert same(loaded, bank)
        assert loaded.names == bank.names
        assert loaded.encoder_name == bank.encoder_name

    def test_the_checksum_is_of_the_content_alone(self, bank, tmp_path):
        """Not of how safetensors lays out a file, which another release may do differently."""
        path = tmp_path / "bank.safetensors"
        bank.save(path)
        length, content = int.from_bytes(path.read_bytes()[:8], "little"), path.read_bytes()[8:]
        header, data = content[:length] + b" " * 8, content[length:]
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        assert same(EmbeddedFusionModel.load(path), bank)
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
        with pytest.raises(ValueError, match="does not match its checksum"):
            EmbeddedFusionModel.load(path)

    @pytest.mark.parametrize("how", DAMAGE)
    def test_damaged_files_are_refused(self, bank, tmp_path, how, monkeypatch):
        path = tmp_path / "bank.safetensors"
        bank.save(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = safetensors.torch.load(path.read_bytes())
        DAMAGE[how](metadata, tensors)
        # Damage that the checksum does not tell, say of a file made by other means.
        monkeypatch.setattr("clip_fusion_loss.objective._digest", lambda *_: "")
        metadata["sha256"] = ""
        path.write_bytes(safetensors.torch.save(tensors, metadata))
        with pytest.raises(ValueError, match="EmbeddedFusionModel.save"):
            EmbeddedFusionModel.load(path)


class TestTextDirection:
    """The vector for a network."""

    def test_is_that_of_the_definition(self, clip_model, tokenizer):
        bank = EmbeddedFusionModel(NAMED, FrozenCLIP(clip_model, tokenizer))
        vectors = bank.text_direction
        assert vectors.shape == (3, 24)
        assert not vectors.requires_grad
        for number, one in enumerate((DARK, MINE, HAZE)):
            texts = Reference(clip_model, tokenizer, one.fused, one.visible, one.infrared)
            both = texts.d_v + texts.d_r
            for actual, expected in (
                (vectors, both / both.norm()),
                (bank.visible_direction, texts.d_v),
                (bank.infrared_direction, texts.d_r),
            ):
                torch.testing.assert_close(actual[number].double(), expected, atol=1e-5, rtol=0)

    def test_of_one_and_of_chosen_ones(self, encoder):
        bank = EmbeddedFusionModel(NAMED, encoder)
        torch.testing.assert_close(bank["mine"].text_direction, bank.text_direction[1])
        torch.testing.assert_close(bank[[2, 0]].text_direction, bank.text_direction[[2, 0]])


WANTED = FusionObjective("a clear image", opposite=["a dark image", "a haze"], opposite_weight=0.7)


class TestOpposite:
    def test_becomes_a_tuple_and_has_a_default(self):
        assert FusionObjective("a").opposite == FusionObjective("a", opposite=[]).opposite == ()
        assert FusionObjective("a", opposite="b").opposite == ("b",)
        assert FusionObjective("a", opposite="b").opposite_weight == 0.5
        weight = FusionObjective("a", opposite_weight=np.float32(2)).opposite_weight
        assert (weight, type(weight)) == (2.0, float)

    def test_is_the_definition(self, clip_model, tokenizer):
        images = draw_images(dtype=torch.float64)
        criterion = make_criterion(
            FrozenCLIP(clip_model, tokenizer), objective=WANTED, reduction="none"
        )
        fused, visible, infrared = (image.float() for image in images)
        fused.requires_grad_()
        terms = criterion.terms(fused=fused, visible=visible, infrared=infrared)
        terms.total.sum().backward()
        reference = Reference(
            build_clip(), tokenizer, WANTED.fused, WANTED.visible, WANTED.infrared,
            [(WANTED.opposite, -0.7)],
        )  # fmt: skip
        images[0].requires_grad_()
        expected = reference.terms(*images, same_transforms(criterion, images[0]))
        total = 2 * expected.direction + 10 * expected.patch + 6 * expected.similarity
        total.sum().backward()
        assert 0 < expected.kept.mean() < 1
        for name in ("direction", "patch", "similarity"):
            actual = getattr(terms, name).double()
            torch.testing.assert_close(actual, getattr(expected, name), atol=1e-5, rtol=0)
        scale = images[0].grad.abs().max()
        assert (fused.grad.double() - images[0].grad).abs().max() < 1e-5 * scale
        # The vector for a network is that at which the loss is least.
        (_, d_v, d_r), (_, o_v, o_r) = reference.wanted
        both = d_v + d_r - 0.7 * (o_v + o_r)
        vector = criterion.fusion_model.text_direction.double()
        torch.testing.assert_close(vector, both / both.norm(), atol=1e-5, rtol=0)

    def test_texts_of_some_leave_the_others_as_they_are(self, encoder):
        mixed = EmbeddedFusionModel([DARK, WANTED, MINE], encoder)
        for row, objective in enumerate((DARK, WANTED, MINE)):
            single = EmbeddedFusionModel(objective, encoder)
            assert torch.equal(mixed.visible_direction[row], single.visible_direction)
            assert torch.equal(mixed.infrared_direction[row], single.infrared_direction)
            assert mixed._total_weight[row] == single._total_weight

    def test_a_text_that_replaces_another_has_none(self, encoder):
        criterion = make_criterion(encoder, objective=WANTED)
        assert criterion.embed(["a dark image"]).objectives == (DARK,)
        criterion.set_objective("a dark image")
        assert criterion.objective == DARK

    @pytest.mark.parametrize("role", ["fused", "visible", "infrared"])
    def test_equal_vectors_are_refused(self, encoder, role):
        objective = FusionObjective("a clear image", opposite="a")
        upper = [text.upper() for text in getattr(objective, role)]
        with pytest.raises(ValueError, match=f"`opposite` and `{role}` must differ"):
            EmbeddedFusionModel(replace(objective, opposite=upper), encoder)
        with pytest.raises(ValueError, match=f"`opposite` and `{role}` must differ"):
            replace(objective, opposite=getattr(objective, role))


class TestMix:
    @pytest.fixture
    def bank(self, encoder):
        return EmbeddedFusionModel({**NAMED, "wanted": WANTED}, encoder)

    ROWS = ({"dark": 1.0, "mine": -0.5}, {"wanted": 2}, {"haze": 0.25, "wanted": -1, "dark": 1})

    def test_is_the_weighted_sum_of_losses(self, bank):
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(3, 5, 1, 24, generator=generator)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        losses = bank(*vectors, index=None)  # (5, 4)
        with pytest.raises(IndexError):  # as of a wrong label of a region on an accelerator
            bank(*vectors[:, :1, 0], index=torch.tensor([-1]))
        # The opposite of an objective that is itself 1 + 0.7 strong.
        opposite = 2 * torch.tensor([1, 1, 1, 1.7]) - losses
        column = {name: number for number, name in enumerate(bank.names)}
        expected = [
            sum(
                abs(weight) * (losses if weight > 0 else opposite)[:, column[name]]
                for name, weight in row.items()
            )
            for row in self.ROWS
        ]
        mixed = bank.mix(self.ROWS)
        torch.testing.assert_close(mixed(*vectors), torch.stack(expected, 1))
        assert mixed.visible_direction.shape == (3, 24)
        for row, wanted in zip(self.ROWS, expected, strict=True):
            one = bank.mix(row)
            assert one.visible_direction.shape == (24,)
            torch.testing.assert_close(one(*vectors)[:, 0], wanted)

    def test_a_tensor_is_the_same(self, bank):
        table = torch.tensor([[1, -0.5, 0, 0], [0, 0, 0, 2], [1, 0, 0.25, -1]])
        expected = bank.mix(self.ROWS)
        for weights in (table, table.double(), table.bfloat16()):
            mixed = bank.mix(weights)
            for name in ("visible_direction", "infrared_direction"):
                torch.testing.assert_close(getattr(mixed, name), getattr(expected, name))
            assert mixed.objectives == expected.objectives
        table.zero_()  # a loop may reuse it
        assert mixed.objectives == expected.objectives

    def test_indices_stand_for_names(self, bank):
        assert same(bank.mix({0: 1.0, 3: -0.5}), bank.mix({"dark": 1.0, "wanted": -0.5}))
        assert same(bank.mix({"mine": 1.0}), bank["mine"].mix({0: 1.0}))
        for weight in (1.0, 1e-4):
            mixed = bank.mix({1: weight})
            torch.testing.assert_close(mixed.text_direction, bank["mine"].text_direction)

    def test_of_mixtures(self, bank):
        twice = bank.mix(self.ROWS).mix({0: 2.0, 2: -1.0})
        expected = bank.mix({"dark": 2 - 1, "mine": -1, "haze": -0.25, "wanted": 1})
        torch.testing.assert_close(twice.visible_direction, expected.visible_direction)
        assert twice.objectives == ({DARK: 1, MINE: -1, HAZE: -0.25, WANTED: 1},)

    def test_texts(self, bank):
        mixed = bank.mix(self.ROWS)
        assert mixed.names is None
        assert mixed.objectives[0] == {DARK: 1.0, MINE: -0.5}
        assert mixed[1].objective == {WANTED: 2.0}
        assert mixed[[2, 0]].objectives == mixed.objectives[::-2]

    @pytest.mark.parametrize("one", [True, False])
    def test_saved_and_loaded(self, bank, encoder, tmp_path, one):
        mixed = bank.mix(self.ROWS[0] if one else self.ROWS)
        mixed.save(tmp_path / "mixed.safetensors")
        loaded = EmbeddedFusionModel.load(tmp_path / "mixed.safetensors", encoder)
        assert same(loaded, mixed)
        assert torch.equal(loaded._total_weight, mixed._total_weight)
        again = pickle.loads(pickle.dumps(copy.deepcopy(bank.mix(self.ROWS))))
        assert same(again, bank.mix(self.ROWS))

    def test_as_the_objective(self, bank, encoder):
        criterion = make_criterion(encoder).eval()
        images = named(draw_images())
        weights = {"dark": 1.0, "wanted": -0.5}
        criterion.set_objective(bank.mix(weights))
        expected = criterion(**images)
        assert criterion.objective == {DARK: 1.0, WANTED: -0.5}
        criterion.objective = criterion.objective
        torch.testing.assert_close(criterion(**images), expected)
        torch.testing.assert_close(
            criterion(**images, objectives=bank.mix([weights] * 2)), expected
        )
        criterion = make_criterion(encoder, objective={"a dark image": 1.0, WANTED: -0.5}).eval()
        torch.testing.assert_close(criterion(**images), expected)
        each = criterion(**images, objectives=[None, "a haze"])
        rows = [weights, {"haze": 1.0}]
        torch.testing.assert_close(each, criterion(**images, objectives=bank.mix(rows)))
        criterion.set_objective("a haze")
        assert criterion.objective == HAZE

    def test_a_tensor_on_a_device_is_not_read(self, bank):
        bank.to("meta")
        mixed = bank.mix(torch.ones(2, 4, device="meta"))
        assert mixed.visible_direction.shape == (2, 24)
        assert mixed.text_direction.is_meta
        assert mixed[[1, 0]].text_direction.is_meta

    @pytest.mark.parametrize(
        ("weights", "error", "words"),
        [
            ({"sharp": 1.0}, KeyError, r"one of the names \['dark', .*'wanted'\], got 'sharp'"),
            ({4: 1.0}, IndexError, "from 0 to 3, got 4"),
            ({None: 1.0}, TypeError, "names or indices, got None"),
            ({}, ValueError, "at least one name or index"),
            ({"dark": "1"}, TypeError, "`weights` must be a number"),
            ({"dark": float("nan")}, ValueError, "`weights` must be finite.*got nan"),
            ([{"dark": 1.0}, {"dark": float("inf")}], ValueError, "`weights` must be finite"),
            ({"dark": 0.0}, ValueError, "not cancel out"),
            ([{"dark": 1.0}, {}], ValueError, "not cancel out"),
            ({"dark": 1.0, 0: -1.0}, ValueError, "not cancel out"),
            (torch.tensor([[1.0, 0, 0, torch.nan]]), ValueError, "must be finite"),
            (torch.zeros(2, 4), ValueError, "not cancel out"),
            (torch.ones(2, 3), ValueError, r"shape \(B, 4\), .* got \(2, 3\)"),
            (torch.ones(4), ValueError, r"shape \(B, 4\)"),
            ([], ValueError, "at least one"),
            ("dark", TypeError, "`weights` must be a Mapping, got 'd'"),
            (["dark"], TypeError, "`weights` must be a Mapping, got 'dark'"),
            (3, TypeError, "`weights` must be a Sequence, got 3"),
        ],
        ids=str,
    )
    def test_wrong_weights(self, bank, weights, error, words):
        with pytest.raises(error, match=words):
            bank.mix(weights)


OBJECTIVES = ["a dark image", ENSEMBLE, "a bright image", "a dark image"]
BANK = {"dark": "a dark image", "mine": ENSEMBLE, "bright": "a bright image"}

FORMS = {
    "texts and objectives": lambda criterion: OBJECTIVES,
    "embedded": lambda criterion: criterion.embed(OBJECTIVES),
    "by name": lambda criterion: criterion.embed(BANK)[["dark", "mine", "bright", "dark"]],
    "by index": lambda criterion: criterion.embed(BANK)[[0, 1, 2, 0]],
    "by tensor": lambda criterion: criterion.embed(BANK)[torch.tensor([0, 1, 2, 0])],
    "without a loss": lambda criterion: EmbeddedFusionModel(OBJECTIVES, criterion.encoder),
}


def run(criterion, images, objectives):
    """Terms and gradient, with the same patches each time."""
    fused = images[0].clone().requires_grad_()
    criterion.eval()
    terms = criterion.terms(**named([fused, *images[1:]]), objectives=objectives)
    terms.total.sum().backward()
    return [term.detach() for term in terms], fused.grad


def one_call_each(criterion, images):
    results = []
    for number, objective in enumerate(OBJECTIVES):
        criterion.set_objective(FusionObjective())
        criterion.set_objective(objective)
        results.append(run(criterion, [image[number : number + 1] for image in images], None))
    criterion.set_objective(FusionObjective())
    terms, gradients = zip(*results, strict=True)
    return [torch.cat(term) for term in zip(*terms, strict=True)], torch.cat(gradients)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {"regularizer": IntensityGradientLoss()}) for form in FORMS),
        ("texts and objectives", {"patch_chunk": None}),
        ("texts and objectives", {"patch_reduction": "kept", "patch_chunk": 3}),
        ("texts and objectives", {"min_patch_entropy": None}),
        ("texts and objectives", {"patch_weight": 0}),
        ("texts and objectives", {"reduction": "mean"}),
    ],
    ids=str,
)
def test_equals_one_call_for_each_image(encoder, form, options):
    images = draw_images(batch=4, channels=(3, 1, 1))
    criterion = make_criterion(encoder, **{"reduction": "none", **options})
    reduction, criterion.reduction = criterion.reduction, "none"
    expected, gradient = one_call_each(criterion, images)
    decides = not options.keys() & {"min_patch_entropy", "patch_weight"}
    assert decides == (0 < expected[-1].mean() < 1), "the filter must have something to decide"
    assert expected[1][0] != expected[1][2]
    if reduction == "mean":
        expected, gradient = [term.mean() for term in expected], gradient / 4
    criterion.reduction = reduction
    terms, actual = run(criterion, images, FORMS[form](criterion))
    for term, wanted in zip(terms, expected, strict=True):
        torch.testing.assert_close(term, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


def test_texts_have_the_sources_in_force(encoder):
    mine = FusionObjective("a brain", visible="an MRI scan", infrared="a PET scan")
    criterion = make_criterion(encoder, objective=mine)
    embedded = criterion.embed(["a clear brain", "a dark brain"])
    assert embedded.objectives[1] == FusionObjective("a dark brain", mine.visible, mine.infrared)
    criterion.set_objective(FusionObjective())
    assert criterion.embed(["a dark brain"]).objectives == (FusionObjective("a dark brain"),)


def test_the_objective_in_force_stays(encoder):
    images = draw_images()
    criterion = make_criterion(encoder).eval()
    before = criterion(**named(images))
    assert criterion(**named(images), objectives=OBJECTIVES[:2]) != before
    assert criterion.objective == FusionObjective()
    assert criterion(**named(images), objectives=None) == before


class TestTexts:
    @pytest.fixture
    def embedded(self, encoder, monkeypatch):
        """The texts of each call of the text tower."""
        calls = []
        embed = encoder._embed

        def note(texts):
            calls.append(list(texts))
            return embed(texts)

        monkeypatch.setattr(encoder, "_embed", note)
        return calls

    def test_each_is_embedded_once_and_new_ones_together(self, encoder, embedded):
        criterion = make_criterion(encoder)
        embedded.clear()
        images = draw_images(batch=4)
        for _ in range(3):
            criterion(**named(images), objectives=OBJECTIVES)
        assert embedded == [
            ["a dark image", *ENSEMBLE.fused, *ENSEMBLE.visible, *ENSEMBLE.infrared,
             "a bright image"]
        ]  # fmt: skip
        criterion.set_objective("a dark image")
        criterion(
            **named(images), objectives=["a dark image", "a dim image", "a haze", "a dark image"]
        )
        assert embedded[1:] == [["a dim image", "a haze"]]

    def test_banks_from_disk_need_no_text_tower(self, encoder, tmp_path):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder).eval()
        expected = criterion(**named(images), objectives=OBJECTIVES)
        criterion.embed(BANK).save(tmp_path / "bank.safetensors")
        bank = EmbeddedFusionModel.load(tmp_path / "bank.safetensors", encoder)
        encoder._text_embeddings.clear()
        encoder.drop_text()
        criterion = make_criterion(encoder, objective=bank["dark"]).eval()
        chosen = bank[["dark", "mine", "bright", "dark"]]
        torch.testing.assert_close(criterion(**named(images), objectives=chosen), expected)
        with pytest.raises(RuntimeError, match="'something else'.*EmbeddedFusionModel"):
            criterion(**named(images), objectives=["a dark image"] * 3 + ["something else"])


class TestWithinAProgram:
    def test_averages_and_casts_of_an_owner_leave_the_vectors_alone(self, encoder):
        owner = nn.Sequential(nn.BatchNorm2d(1))
        owner.criterion = make_criterion(encoder, objective="a dark image", generator=None)
        averaged = torch.optim.swa_utils.AveragedModel(owner, use_buffers=True)
        owner.criterion.objective = "a bright image"
        averaged.update_parameters(owner)
        averaged.update_parameters(owner)
        assert_vectors_are_of_the_text(averaged.module.criterion, "a dark image")
        assert_vectors_are_of_the_text(owner.double().criterion, "a bright image")
        copied = pickle.loads(pickle.dumps(copy.deepcopy(owner)))
        assert_vectors_are_of_the_text(copied.criterion, "a bright image")
        vectors = owner.to("meta").criterion.fusion_model
        assert vectors.visible_direction.is_meta
        assert vectors.infrared_direction.is_meta


def assert_vectors_are_of_the_text(criterion, text):
    assert criterion.objective == FusionObjective(text)
    expected = EmbeddedFusionModel(FusionObjective(text), criterion.encoder)
    for name in ("visible_direction", "infrared_direction"):
        assert getattr(criterion.fusion_model, name).dtype == torch.float32
        assert torch.equal(getattr(criterion.fusion_model, name), getattr(expected, name))


def other_bank(here):
    tokenizer = here.encoder._tokenizer
    other = FrozenCLIP(build_clip(seed=1), tokenizer, name="other")
    return EmbeddedFusionModel(["a dark image", "a haze"], other)


WRONG = {
    "a whole bank": (lambda c: c.embed({"a": "ab", "b": "cd"}), ValueError, "a whole bank"),
    "too few texts": (lambda c: ["a dark image"], ValueError, "images, 2, got 1;"),
    "no text": (lambda c: [], ValueError, "images, 2, got 0;"),
    "one text": (lambda c: "ab", TypeError, "got 'ab'; set one for all images with"),
    "one objective": (lambda c: FusionObjective(), TypeError, "criterion.set_objective"),
    "a mapping": (lambda c: {"a": "b", "c": "d"}, TypeError, r"bank\[names\]"),
    "indices": (lambda c: torch.tensor([0, 1]), TypeError, r"bank\[indices\]"),
    "a number": (lambda c: 3, TypeError, "must be a sequence of texts"),
    "a number among them": (lambda c: ["a dark image", 3], TypeError, "got 3 among them"),
    "an ensemble as a list": (lambda c: ["a", ["b", "c"]], TypeError, r"FusionObjective\(te"),
    "an empty text": (lambda c: ["a dark image", ""], ValueError, "no empty one"),
    "a file": (lambda c: ["a", "b.safetensors"], ValueError, "seems to be a file"),
    "a source's text": (lambda c: ["a", "An INFRARED image"], ValueError, "same vector"),
    "another length": (lambda c: c.embed(BANK), ValueError, "images, 2, got 3;"),
    "one embedded": (lambda c: c.fusion_model, ValueError, "images, 2, got 1;"),
    "another encoder": (other_bank, ValueError, "'other', got 'custom'"),
    "elsewhere": (
        lambda c: c.embed(["a", "b"]).to("meta"), ValueError, r"got meta; .*\.to\('cpu'\)"
    ),
}  # fmt: skip


class TestWrongCalls:
    @pytest.mark.parametrize("case", WRONG)
    def test_of_the_loss(self, encoder, case):
        make, error, words = WRONG[case]

        criterion = make_criterion(encoder).eval()
        expected = criterion(**named(draw_images()))
        with pytest.raises(error, match=words):
            criterion(**named(draw_images()), objectives=make(criterion))
        assert criterion(**named(draw_images())) == expected

    def test_banks_are_not_in_force(self, encoder):
        criterion = make_criterion(encoder)
        before = criterion.fusion_model
        with pytest.raises(ValueError, match=r"must be a single one, .* 3; .*bank\[name\]"):
            criterion.set_objective(criterion.embed(BANK))
        with pytest.raises(ValueError, match="must be a single one"):
            LanguageDrivenFusionLoss(criterion.embed(BANK), encoder=encoder)
        assert criterion.fusion_model is before
        criterion.set_objective(criterion.embed(BANK)["mine"])
        assert criterion.objective == ENSEMBLE
