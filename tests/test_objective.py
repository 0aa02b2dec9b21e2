"""Objectives: the words, the words as directions, banks, one for each image, and files."""

import copy
import dataclasses
import json
import pickle
import warnings
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
)
from conftest import (
    TORCH_VERSION,
    build_clip,
    draw_images,
    make_criterion,
    named,
)
from reference import Reference


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


ENSEMBLE = FusionObjective(
    fused=("a clear image", "a sharp photo with detail"), visible="a photo", infrared=("a", "b")
)


@pytest.fixture
def saved(encoder, tmp_path):
    path = tmp_path / "objective.safetensors"
    EmbeddedFusionModel(ENSEMBLE, encoder).save(path)
    return path


def test_directions_equal_the_reference(clip_model, tokenizer):
    expected = Reference(clip_model, tokenizer, ENSEMBLE.fused, ENSEMBLE.visible, ENSEMBLE.infrared)
    model = EmbeddedFusionModel(ENSEMBLE, FrozenCLIP(clip_model, tokenizer))
    for actual, reference in (
        (model.visible_direction, expected.d_v),
        (model.infrared_direction, expected.d_r),
    ):
        torch.testing.assert_close(actual.double(), reference, atol=1e-5, rtol=0)


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

    def test_a_clip_without_vocabulary_takes_any(self, encoder):
        assert EmbeddedFusionModel(FusionObjective("..."), encoder).visible_direction.norm() > 0.99

    def test_files_of_0_2_with_such_a_text_warn(self, encoder, tmp_path):
        model = EmbeddedFusionModel(FusionObjective("a dark image"), encoder)
        model.visible_direction, model.infrared_direction = torch.zeros(2, 24)
        model.save(tmp_path / "nothing.safetensors")
        with pytest.warns(UserWarning, match="nothing.safetensors has no effect"):
            EmbeddedFusionModel.load(tmp_path / "nothing.safetensors")


def test_another_encoder_is_refused(saved, tokenizer):
    other = FrozenCLIP(build_clip(seed=1), tokenizer, name="another")
    with pytest.raises(ValueError, match="'custom'.*'another'"):
        EmbeddedFusionModel.load(saved, other)


def test_the_same_weights_in_half_precision_are_the_same_encoder(saved, encoder):
    EmbeddedFusionModel.load(saved, encoder.half())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        EmbeddedFusionModel.load(tmp_path / "none.safetensors")


def test_home_folder(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fusion_model = EmbeddedFusionModel(FusionObjective("a sharp image"), encoder)
    fusion_model.save("~/sharp.safetensors")
    assert (tmp_path / "sharp.safetensors").is_file()
    loaded = EmbeddedFusionModel.load("~/sharp.safetensors", encoder)
    assert loaded.objective == fusion_model.objective


NAMED = {"dark": FusionObjective("a dark image"), "mine": ENSEMBLE, "haze": "a haze"}
DARK, MINE, HAZE = NAMED["dark"], ENSEMBLE, FusionObjective("a haze")


def same(model, expected):
    return (
        torch.equal(model.visible_direction, expected.visible_direction)
        and torch.equal(model.infrared_direction, expected.infrared_direction)
        and model.objectives == expected.objectives
    )


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
            [2, 0, 2],
            np.array([2, 0, 2]),
            np.array(["haze", "dark", "haze"]),
            torch.tensor([2, 0, 2]),
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
        chosen._chosen = torch.tensor([2, 0])
        assert copy.deepcopy(chosen).objectives == chosen.objectives == expected.objectives
        assert bank[torch.tensor([2, 0])].visible_direction.is_meta

    @pytest.mark.parametrize(
        ("choice", "error", "words"),
        [
            ("sharp", KeyError, r"of the names \['dark', 'mine', 'haze'\], got 'sharp'"),
            (["dark", "sharp"], KeyError, "got 'sharp'"),
            (3, IndexError, r"indices from 0 to 2, got \[3\]"),
            (-1, IndexError, r"indices from 0 to 2, got \[-1\]"),
            ([0, 7, 1, 9], IndexError, r"got \[7, 9\]"),
            (torch.tensor([0, 3]), IndexError, r"from 0 to 2, got \[3\]"),
            (torch.tensor([-1]), IndexError, r"got \[-1\]"),
            ([], ValueError, "got none"),
            (torch.tensor([], dtype=torch.int64), ValueError, "got none"),
            (torch.tensor(1), TypeError, r"shape \(B,\), got .* \(\)"),
            (torch.tensor([[1]]), TypeError, r"shape \(B,\), got .* \(1, 1\)"),
            (torch.tensor([0.0]), TypeError, "got torch.float32 .*long"),
            (torch.tensor([True, False, True]), TypeError, "got torch.bool"),
            (True, TypeError, "names or indices, got True"),
            ([0.5], TypeError, "names or indices, got 0.5"),
            (0.5, TypeError, "be a name, an index"),
            ({"dark"}, TypeError, "be a name, an index"),
            ({"dark": 1}, TypeError, "be a name, an index"),
            (b"dark", TypeError, "be a name, an index"),
            (slice(0, 2), TypeError, "be a name, an index"),
            (None, TypeError, "be a name, an index"),
        ],
        ids=str,
    )
    def test_wrong_choices(self, bank, choice, error, words):
        with pytest.raises(error, match=f"`choice` must.* {words}"):
            bank[choice]

    def test_names_of_a_bank_without(self, encoder):
        with pytest.raises(KeyError, match=r"of the names \[\], got 'dark'"):
            EmbeddedFusionModel(list(NAMED.values()), encoder)["dark"]

    def test_has_no_single_objective(self, bank):
        with pytest.raises(ValueError, match="a bank of 3; choose"):
            _ = bank.objective

    @pytest.mark.parametrize("wrong", [[], {}, [3], {3: "a"}, {"a": ["b", "c"]}, "a", iter("a")])
    def test_wrong_objectives(self, encoder, wrong):
        with pytest.raises((TypeError, ValueError), match="`objective` must"):
            EmbeddedFusionModel(wrong, encoder)

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

    @pytest.mark.parametrize(
        "how", ["names gone", "a name less", "equal names", "no names", "numbers", "a text less",
                "no texts", "a row less", "not unit", "nan", "half", "one direction"],
    )  # fmt: skip
    def test_damaged_files_are_refused(self, bank, tmp_path, how, monkeypatch):
        path = tmp_path / "bank.safetensors"
        bank.save(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = safetensors.torch.load(path.read_bytes())
        texts = json.loads(metadata["objectives"])
        if how == "names gone":
            del metadata["names"]
        names = {
            "a name less": ["a", "b"], "equal names": ["a", "a", "b"], "no names": [],
            "numbers": [1, 2, 3],
        }  # fmt: skip
        if how in names:
            metadata["names"] = json.dumps(names[how])
        if how == "a text less":
            metadata["objectives"] = json.dumps(texts[:2])
        if how == "no texts":
            metadata["objectives"] = metadata["names"] = "[]"
            tensors = {name: tensor[:0] for name, tensor in tensors.items()}
        if how == "a row less":
            tensors["visible_direction"] = tensors["visible_direction"][:2].clone()
        if how == "not unit":
            tensors["infrared_direction"][2] *= 2
        if how == "nan":
            tensors["infrared_direction"][2, 3] = torch.nan
        if how == "half":
            tensors["visible_direction"] = tensors["visible_direction"].half()
        if how == "one direction":
            tensors = {name: tensor[0].clone() for name, tensor in tensors.items()}
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
        assert vectors.dtype == torch.float32
        for number, objective in enumerate((DARK, MINE, HAZE)):
            expected = Reference(
                clip_model, tokenizer, objective.fused, objective.visible, objective.infrared
            )
            both = expected.d_v + expected.d_r
            torch.testing.assert_close(
                vectors[number].double(), both / both.norm(), atol=1e-5, rtol=0
            )

    def test_of_one_and_of_chosen_ones(self, encoder):
        bank = EmbeddedFusionModel(NAMED, encoder)
        assert bank["mine"].text_direction.shape == (24,)
        torch.testing.assert_close(bank["mine"].text_direction, bank.text_direction[1])
        torch.testing.assert_close(bank[[2, 0]].text_direction, bank.text_direction[[2, 0]])
        assert not bank.text_direction.requires_grad

    def test_no_common_step_has_less_loss(self, encoder):
        """It is where the loss pulls, as seen from both sources."""
        one = EmbeddedFusionModel(MINE, encoder)
        generator = torch.Generator().manual_seed(0)
        steps = torch.randn(200, 24, generator=generator)
        steps = torch.nn.functional.normalize(steps, dim=-1)

        def loss(step):  # of the step from sources at one place
            source = torch.zeros(24)
            return one(source + step, source, source)

        best = loss(one.text_direction)
        near = torch.nn.functional.normalize(one.text_direction + 0.05 * steps, dim=-1)
        assert best < loss(near).min()
        assert best < loss(steps).min()


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


@pytest.mark.parametrize("form", FORMS)
def test_equals_one_call_for_each_image(encoder, form):
    images = draw_images(batch=4)
    criterion = make_criterion(encoder, reduction="none", regularizer=IntensityGradientLoss())
    expected, gradient = one_call_each(criterion, images)
    terms, actual = run(criterion, images, FORMS[form](criterion))
    assert 0 < expected[-1].mean() < 1, "the filter must have something to decide"
    assert expected[1][0] != expected[1][2]
    for term, wanted in zip(terms, expected, strict=True):
        torch.testing.assert_close(term, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize(
    "options",
    [
        {"patch_chunk": None},
        {"patch_chunk": 5},
        {"patch_reduction": "kept", "patch_chunk": 3},
        {"min_patch_entropy": None},
        {"patch_weight": 0},
        {"reduction": "mean"},
        {"reduction": "sum"},
    ],
    ids=str,
)
def test_with_every_option(encoder, options):
    images = draw_images(batch=4, channels=(3, 1, 3))
    criterion = make_criterion(encoder, **{"reduction": "none", **options})
    criterion.reduction = "none"
    expected, gradient = one_call_each(criterion, images)
    criterion.reduction = reduction = options.get("reduction", "none")
    terms, actual = run(criterion, images, OBJECTIVES)
    reduce = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]
    torch.testing.assert_close(terms[0], reduce(expected[0]), rtol=1e-6, atol=1e-6)
    if reduction == "mean":
        gradient /= 4
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

    def test_unknown_words_are_named_once(self, knowing):
        criterion = make_criterion(knowing, objective="a dark image")
        images = draw_images()
        with pytest.warns(UserWarning, match="'zebra'") as caught:
            criterion(**named(images), objectives=["a dark zebra", "an image"])
        assert [warning.filename for warning in caught] == [__file__]
        terms = criterion.terms(**named(images), objectives=["a dark zebra", "an image"])
        assert terms.total.isfinite()

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
    def test_nothing_is_saved_or_trained(self, encoder):
        criterion = make_criterion(encoder)
        criterion(**named(draw_images(batch=4)), objectives=OBJECTIVES)
        owner = nn.ModuleDict({"criterion": criterion, "bank": criterion.embed(BANK)})
        assert owner.state_dict() == {}
        assert not list(owner.parameters())
        assert not list(owner.buffers())

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, encoder, clone):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder, generator=None).eval()
        bank = criterion.embed(BANK)
        expected = criterion(**named(images), objectives=OBJECTIVES)
        copied, copied_bank = clone((criterion, bank))
        assert copied(**named(images), objectives=OBJECTIVES) == expected
        chosen = copied_bank[["dark", "mine", "bright", "dark"]]
        assert copied(**named(images), objectives=chosen) == expected
        assert clone(chosen).objectives == chosen.objectives

    def test_what_is_seen_in_inference_mode_serves_in_training(self, encoder):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder, reduction="none")
        expected = run(copy.deepcopy(criterion), images, OBJECTIVES)
        with torch.inference_mode():
            criterion(**named(images), objectives=OBJECTIVES)
            chosen = criterion.embed(BANK)[torch.tensor([0, 1, 2, 0])]
        for objectives in (OBJECTIVES, chosen):
            torch.testing.assert_close(run(criterion, images, objectives), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast(self, encoder, dtype):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder)
        expected, _ = run(criterion, images, OBJECTIVES)
        with torch.autocast("cpu", dtype):
            chosen = criterion.embed(BANK)[[0, 1, 2, 0]]
            assert chosen.text_direction.dtype == torch.float32
            terms, gradient = run(criterion, images, chosen)
        assert gradient.isfinite().all()
        torch.testing.assert_close(terms[0], expected[0], rtol=0.02, atol=0)

    def test_transforms(self, encoder):
        fused, *sources = draw_images(batch=4)
        criterion = make_criterion(encoder).eval()
        _, expected = run(criterion, (fused, *sources), OBJECTIVES)
        actual = torch.func.grad(
            lambda f: criterion(**named([f, *sources]), objectives=OBJECTIVES)
        )(fused)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.skipif(
        TORCH_VERSION < (2, 5), reason="compiling `bank[tensor]` is an error in torch 2.4"
    )
    @pytest.mark.filterwarnings("ignore:The .grad attribute")
    def test_compiled_step(self, encoder):
        """Other texts, no other graphs."""
        torch.manual_seed(0)
        network = nn.Conv2d(2 + 24, 1, 1)
        _, visible, infrared = draw_images(batch=4)
        criterion = make_criterion(encoder).eval()
        bank = criterion.embed(BANK)

        def step(index):
            vector = bank.text_direction[index][:, :, None, None].expand(-1, -1, 40, 48)
            fused = network(torch.cat([visible, infrared, vector], 1)).sigmoid()
            return criterion(
                fused=fused, visible=visible, infrared=infrared, objectives=bank[index]
            )

        compiled = torch.compile(step, backend="eager")
        indices = [torch.tensor(rows) for rows in ([0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1])]
        losses = [compiled(indices[0])]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        losses += [compiled(index) for index in indices[1:]]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        for loss, index in zip(losses, indices, strict=True):
            torch.testing.assert_close(loss, step(index))
            assert all(slope.any() for slope in torch.autograd.grad(loss, network.parameters()))

    def test_the_host_waits_for_nothing_more(self, encoder, reads):
        criterion = make_criterion(encoder)
        images = draw_images(batch=4)
        chosen = criterion.embed(BANK)[[0, 1, 2, 0]]
        criterion(**named(images), objectives=OBJECTIVES)
        reads.clear()
        criterion(**named(images), objectives=chosen)
        assert reads == ["nonzero"]

    def test_averages_and_casts_of_an_owner_leave_the_vectors_alone(self, encoder):
        owner = nn.Sequential(nn.BatchNorm2d(1))
        owner.criterion = make_criterion(encoder, objective="a dark image", generator=None)
        averaged = torch.optim.swa_utils.AveragedModel(owner, use_buffers=True)
        owner.criterion.objective = "a bright image"
        averaged.update_parameters(owner)
        averaged.update_parameters(owner)
        assert_vectors_are_of_the_text(averaged.module.criterion, "a dark image")
        assert_vectors_are_of_the_text(owner.double().criterion, "a bright image")
        assert_vectors_are_of_the_text(owner.to_empty(device="cpu").criterion, "a bright image")
        copied = pickle.loads(pickle.dumps(copy.deepcopy(owner)))
        assert_vectors_are_of_the_text(copied.criterion, "a bright image")
        vectors = owner.to("meta").criterion.fusion_model
        assert vectors.visible_direction.is_meta
        assert vectors.infrared_direction.is_meta

    @pytest.mark.slow
    def test_distributed(self, tmp_path):
        """Two processes with other texts each have the gradient of one with all of them."""
        torch.multiprocessing.spawn(train_a_part, (tmp_path,), nprocs=2)
        ranks = [torch.load(tmp_path / f"result{rank}", weights_only=True) for rank in range(2)]
        trainer, sources = Trainer(), draw_images(batch=4)[1:]
        trainer(*sources, TEXTS).backward()
        for rank in ranks:
            for actual, parameter in zip(rank, trainer.parameters(), strict=True):
                torch.testing.assert_close(actual, parameter.grad, rtol=1e-4, atol=1e-6)


TEXTS = ["a dark image", "a bright image", "a haze", "a sharp image"]


def assert_vectors_are_of_the_text(criterion, text):
    assert criterion.objective == FusionObjective(text)
    expected = EmbeddedFusionModel(FusionObjective(text), criterion.encoder)
    for name in ("visible_direction", "infrared_direction"):
        assert getattr(criterion.fusion_model, name).dtype == torch.float32
        assert torch.equal(getattr(criterion.fusion_model, name), getattr(expected, name))


class Trainer(nn.Module):
    """A network beside its loss, without random patches, which differ between processes."""

    def __init__(self):
        super().__init__()
        import open_clip

        torch.manual_seed(0)
        tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=24)
        self.criterion = make_criterion(FrozenCLIP(build_clip(), tokenizer), patch_weight=0.0)
        self.network = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, visible, infrared, objectives):
        fused = self.network(torch.cat([visible, infrared], 1)).sigmoid()
        return self.criterion(
            fused=fused, visible=visible, infrared=infrared, objectives=objectives
        )


def train_a_part(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch about itself
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    trainer = nn.parallel.DistributedDataParallel(Trainer())
    trainer.module.criterion.objective = TEXTS[2 * rank]
    sources = (source.chunk(2)[rank] for source in draw_images(batch=4)[1:])
    # The second step would send the buffers of rank 0 to rank 1, whose texts are others.
    for _ in range(2):
        trainer.zero_grad()
        loss = trainer(*(sources := list(sources)), TEXTS[2 * rank : 2 * rank + 2])
        loss.backward()
    assert_vectors_are_of_the_text(trainer.module.criterion, TEXTS[2 * rank])
    torch.save([parameter.grad for parameter in trainer.parameters()], folder / f"result{rank}")
    dist.destroy_process_group()


def other_bank(here):
    tokenizer = here.encoder._tokenizer
    other = FrozenCLIP(build_clip(seed=1), tokenizer, name="other")
    return EmbeddedFusionModel(["a dark image", "a haze"], other)


class TestWrongCalls:
    CASES: ClassVar = {
        "too few texts": (lambda c: ["a dark image"], ValueError, "images, 2, got 1;"),
        "too many texts": (lambda c: OBJECTIVES, ValueError, "images, 2, got 4;"),
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

    @pytest.mark.parametrize("case", CASES)
    def test_of_the_loss(self, encoder, case):
        make, error, words = self.CASES[case]
        criterion = make_criterion(encoder).eval()
        expected = criterion(**named(draw_images()))
        with pytest.raises(error, match=words):
            criterion(**named(draw_images()), objectives=make(criterion))
        assert criterion(**named(draw_images())) == expected

    @pytest.mark.parametrize("wrong", [{}, [], {1: "a"}, "a", 3, None, {"a": 3}, {"a"}])
    def test_of_embed(self, encoder, wrong):
        with pytest.raises((TypeError, ValueError), match="`objectives` must"):
            make_criterion(encoder).embed(wrong)

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
