"""EmbeddedFusionModel: directions, files and what is refused."""

import json
import os

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


def test_home_folder(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fusion_model = EmbeddedFusionModel(FusionObjective("a sharp image"), encoder)
    fusion_model.save("~/sharp.safetensors")
    assert (tmp_path / "sharp.safetensors").is_file()
    loaded = EmbeddedFusionModel.load("~/sharp.safetensors", encoder)
    assert loaded.objective == fusion_model.objective
