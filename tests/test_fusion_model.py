"""EmbeddedFusionModel: directions, files and what is refused."""

import copy
import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from conftest import build_clip
from reference import Reference

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


def test_nothing_in_the_state_dict(encoder):
    model = EmbeddedFusionModel(ENSEMBLE, encoder)
    assert not model.state_dict()
    assert not list(model.parameters())


def test_equal_vectors_are_refused_with_both_texts(encoder):
    with pytest.raises(ValueError, match=r"An INFRARED image.*an infrared image"):
        EmbeddedFusionModel(FusionObjective("An INFRARED image"), encoder)


@pytest.mark.filterwarnings("ignore:the model")
def test_a_sentence_of_unknown_words_has_no_direction(tmp_path, clip_model, tokenizer):
    encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "visible", "infrared", "image"})
    nothing = EmbeddedFusionModel(FusionObjective("a purple elephant"), encoder)
    nothing.save(tmp_path / "nothing.safetensors")
    for model in (nothing, EmbeddedFusionModel.load(tmp_path / "nothing.safetensors")):
        vectors = torch.nn.functional.normalize(torch.randn(3, 2, 24), dim=-1)
        fused = vectors[0].requires_grad_()
        loss = model(fused, *vectors[1:])
        (gradient,) = torch.autograd.grad(loss.sum(), fused)
        assert torch.equal(loss, torch.ones(2))
        assert not gradient.any()
    # One text of an ensemble that says something is enough.
    some = EmbeddedFusionModel(FusionObjective(["a purple elephant", "an image"]), encoder)
    assert some.visible_direction.norm() > 0.99


def test_directions_stay_float32(encoder):
    model = EmbeddedFusionModel(ENSEMBLE, encoder)
    before = model.visible_direction.clone()
    model.half().double().to_empty(device="cpu")
    assert torch.equal(model.visible_direction, before)


def test_save_and_load(saved, encoder):
    model, loaded = EmbeddedFusionModel(ENSEMBLE, encoder), EmbeddedFusionModel.load(saved, encoder)
    assert loaded.objective == ENSEMBLE
    assert loaded.encoder_name == encoder.name
    for name in ("visible_direction", "infrared_direction"):
        assert torch.equal(getattr(loaded, name), getattr(model, name))


def test_another_encoder_is_refused(saved, tokenizer):
    other = FrozenCLIP(build_clip(seed=1), tokenizer, name="another")
    with pytest.raises(ValueError, match="'custom'.*'another'"):
        EmbeddedFusionModel.load(saved, other)


def test_the_same_weights_in_half_precision_are_the_same_encoder(saved, encoder):
    EmbeddedFusionModel.load(saved, encoder.half())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        EmbeddedFusionModel.load(tmp_path / "none.safetensors")


def damaged(path, how):
    content = path.read_bytes()
    if how == "empty":
        return b""
    if how == "truncated":
        return content[:-10]
    if how == "other file":
        return b"not a safetensors file at all"
    tensors = safetensors.torch.load(content)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if how == "no metadata":
        metadata = None
    if how == "other version":
        metadata["format"] += "0"
    if how == "texts gone":
        metadata["objective"] = json.dumps({"fused": ""})
    if how == "not json":
        metadata["objective"] = "{"
    if how == "no encoder":
        del metadata["encoder_fingerprint"]
    if how == "direction missing":
        del tensors["visible_direction"]
    if how == "not unit":
        tensors["visible_direction"] *= 2
    if how == "nan":
        tensors["visible_direction"][0] = torch.nan
    if how == "half":
        tensors["visible_direction"] = tensors["visible_direction"].half()
    if how == "other length":
        tensors["visible_direction"] = torch.tensor([1.0])
    return safetensors.torch.save(tensors, metadata)


@pytest.mark.parametrize(
    "how",
    [
        "empty", "truncated", "other file", "no metadata", "other version", "texts gone",
        "not json", "no encoder", "direction missing", "not unit", "nan", "half", "other length",
    ],
)  # fmt: skip
def test_damaged_files_are_refused(saved, how):
    saved.write_bytes(damaged(saved, how))
    with pytest.raises(ValueError, match="EmbeddedFusionModel.save"):
        EmbeddedFusionModel.load(saved)


def test_failed_save_leaves_the_old_file(saved, encoder, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        EmbeddedFusionModel(FusionObjective(), encoder).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


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
            ("sharp", ValueError, r"of the names \['dark', 'mine', 'haze'\], got 'sharp'"),
            (["dark", "sharp"], ValueError, "got 'sharp'"),
            (3, ValueError, r"indices from 0 to 2, got \[3\]"),
            (-1, ValueError, r"indices from 0 to 2, got \[-1\]"),
            ([0, 7, 1, 9], ValueError, r"got \[7, 9\]"),
            (torch.tensor([0, 3]), ValueError, r"from 0 to 2, got \[3\]"),
            (torch.tensor([-1]), ValueError, r"got \[-1\]"),
            ([], ValueError, "got none"),
            (torch.tensor([], dtype=torch.int64), ValueError, "got none"),
            (torch.tensor(1), ValueError, r"shape \(B,\), got \(\)"),
            (torch.tensor([[1]]), ValueError, r"shape \(B,\), got \(1, 1\)"),
            (torch.tensor([0.0]), TypeError, "got torch.float32; .*long"),
            (torch.tensor([True, False, True]), TypeError, "got torch.bool"),
            (torch.tensor([0]).to("meta"), ValueError, "on the CPU or on cpu, got meta"),
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
        with pytest.raises(ValueError, match=r"of the names \[\], got 'dark'"):
            EmbeddedFusionModel(list(NAMED.values()), encoder)["dark"]

    def test_has_no_single_objective(self, bank):
        with pytest.raises(ValueError, match="a bank of 3; choose"):
            _ = bank.objective

    @pytest.mark.parametrize("wrong", [[], {}, [3], {3: "a"}, {"a": ["b", "c"]}, "a", iter("a")])
    def test_wrong_objectives(self, encoder, wrong):
        with pytest.raises((TypeError, ValueError), match="`objective` must"):
            EmbeddedFusionModel(wrong, encoder)

    @pytest.mark.parametrize("how", ["named", "unnamed", "chosen"])
    def test_save_and_load(self, bank, encoder, tmp_path, how):
        if how == "unnamed":
            bank = EmbeddedFusionModel(list(NAMED.values()), encoder)
        if how == "chosen":
            bank = bank[torch.tensor([2, 1, 2, 0])]
        bank.save(tmp_path / "bank.safetensors")
        loaded = EmbeddedFusionModel.load(tmp_path / "bank.safetensors", encoder)
        assert same(loaded, bank)
        assert loaded.names == bank.names
        assert loaded.encoder_name == bank.encoder_name

    def test_files_of_single_ones_are_as_before(self, bank, encoder, tmp_path):
        """So that the version before this one reads them too."""
        for model in (bank["mine"], EmbeddedFusionModel(MINE, encoder)):
            model.save(tmp_path / "objective.safetensors")
            with safetensors.safe_open(tmp_path / "objective.safetensors", "pt") as file:
                metadata = file.metadata()
                assert file.get_tensor("visible_direction").shape == (24,)
            assert metadata["format"] == "clip_fusion_loss.EmbeddedFusionModel/1"
            assert FusionObjective(**json.loads(metadata["objective"])) == MINE
            assert metadata.keys() == {
                "format", "objective", "encoder_name", "encoder_fingerprint", "sha256"
            }  # fmt: skip

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
        monkeypatch.setattr("clip_fusion_loss.objective_files._digest", lambda *_: "")
        metadata["sha256"] = ""
        path.write_bytes(safetensors.torch.save(tensors, metadata))
        with pytest.raises(ValueError, match="EmbeddedFusionModel.save"):
            EmbeddedFusionModel.load(path)

    def test_truncated_or_flipped_anywhere(self, bank, tmp_path):
        path = tmp_path / "bank.safetensors"
        bank.save(path)
        content = path.read_bytes()
        refused = 0
        positions = range(0, len(content), 5)
        for position in positions:
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            try:
                loaded = EmbeddedFusionModel.load(path)
                assert same(loaded, bank)  # a blank, say
            except ValueError as error:
                refused += "EmbeddedFusionModel.save" in str(error)
            path.write_bytes(content[:position])
            with pytest.raises(ValueError, match="EmbeddedFusionModel.save"):
                EmbeddedFusionModel.load(path)
        assert refused > 0.95 * len(positions)

    def test_directions_stay_float32_and_out_of_checkpoints(self, bank):
        before = bank.visible_direction.clone()
        bank.half().double().to_empty(device="cpu")
        assert torch.equal(bank.visible_direction, before)
        assert bank.state_dict() == {}
        assert not list(bank.parameters())


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
