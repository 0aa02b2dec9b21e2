"""The file of sentences, and their vectors at fusing time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from parts.networks.conditioned import Conditioned
from parts.networks.densefuse import DenseFuse
from parts.training import sentences
from parts.training.sentences import folder_name, read_sentences, told_by_folder, vectors_of

SOURCES = FusionObjective(visible="a dark gray image")


@pytest.fixture(scope="module")
def bank():
    objectives = [replace(SOURCES, fused=text) for text in ("a dark image", "a bright image")]
    return EmbeddedFusionModel(objectives, FrozenCLIP.tiny())


def written(tmp_path, content):
    path = tmp_path / "sentences.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_sentence_a_line(tmp_path):
    content = (
        "\ufeff# comment\n\na dark image\r\n  2.5 | a bright image \n\t#\n.5|2 images | one\n3 cars"
    )
    assert read_sentences(written(tmp_path, content)) == {
        "a dark image": 1,
        "a bright image": 2.5,
        "2 images | one": 0.5,
        "3 cars": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a sentence a line, got none"),
        ("# only\n\n", "must hold a sentence a line, got none"),
        ("a\ntwo | a dark image", "line 2: the weight before the bar must be .* got 'two'; write"),
        ("0 | a", "line 1: the weight before the bar must be above 0 and at most 1000000, got '0'"),
        ("-1 | a", "got '-1'"),
        ("nan | a", "got 'nan'"),
        ("inf | a", "got 'inf'"),
        ("1e7 | a", "got '1e7'"),
        ("| a", "got ''"),
        ("2 | ", r"line 1: a sentence must follow the bar, got '2 \|'"),
        ("a\n2 | a", "line 2: each sentence must be listed once, got 'a' again"),
        (b"\xff\xfea", "must be text in UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"--prompts .*sentences.txt.*{message}"):
        read_sentences(written(tmp_path, content))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(OSError, match="--prompts .*none.txt cannot be read: No such file"):
        read_sentences(tmp_path / "none.txt")


def test_known_sentences_need_no_encoder_and_new_ones_have_the_same_sources(bank):
    known = vectors_of(["a bright image"], bank, "no such encoder")
    assert torch.equal(known["a bright image"], bank.text_direction[1])
    both = vectors_of(["a blurry image", "a dark image"], bank, "tiny")
    expected = EmbeddedFusionModel(replace(SOURCES, fused="a blurry image"), FrozenCLIP.tiny())
    torch.testing.assert_close(both["a blurry image"], expected.text_direction)
    assert torch.equal(both["a dark image"], bank.text_direction[0])
    with pytest.raises(ValueError, match="--encoder must be tiny, which"):
        vectors_of(["a blurry image"], bank, "no such encoder")


def test_another_encoder_is_refused(bank, encoder, monkeypatch):
    monkeypatch.setattr(sentences, "load_clip", lambda name: encoder)
    message = "--encoder must be the CLIP that the network was trained with, 'tiny', got other"
    with pytest.raises(ValueError, match=message):
        vectors_of(["a blurry image"], bank, "other")


def test_blends_go_from_one_to_the_other(bank):
    network = Conditioned(DenseFuse(), bank.text_direction.shape[1])
    blend = ("a dark image", "a bright image", 4)
    told = told_by_folder(network, ["a bright image"], blend, bank, "tiny")
    folder = "a-dark-image_a-bright-image"
    assert list(told) == [
        "a-bright-image",
        *(f"{folder}/{n}" for n in ("000", "033", "067", "100")),
    ]
    dark, bright = bank.text_direction
    for name, expected in {
        "a-bright-image": bright,
        f"{folder}/000": dark,
        f"{folder}/033": F.normalize(2 / 3 * dark + 1 / 3 * bright, dim=0),
        f"{folder}/100": bright,
    }.items():
        torch.testing.assert_close(told[name].vector[0], expected)
    many = told_by_folder(network, [], (*blend[:2], sentences.MOST_STEPS), bank, "tiny")
    assert len(many) == sentences.MOST_STEPS


def test_folders_are_safe_and_unique():
    assert folder_name("a dark image") == "a-dark-image"
    others = ["A dark image", "a dark-image", "a dark image!", "../a dark image", "清晰", "晰清"]
    others += ["word " * 100, "word " * 101, "."]
    names = {folder_name(text) for text in others}
    assert len(names) == len(others)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
    assert all(0 < len(name) < 50 for name in names)
