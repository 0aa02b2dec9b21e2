"""The network that comes with the examples: its size, its sentences, and that it follows them."""

import runpy
import sys

import pytest
import torch

import fuse
from clip_fusion_loss import FrozenCLIP, FusionObjective
from masks import hot_region
from networks.weights import load_trained
from pairs import TNO, find_pairs, folders_of, read_image, read_pair
from training import fuse_with, read_sentences

MANY = TNO.parent / "many"
PAPER = FusionObjective().fused[0]


def test_its_files_are_small_and_of_the_bundled_clip():
    assert sum(path.stat().st_size for path in MANY.glob("*.safetensors")) <= 2e6
    network, bank, encoder = load_trained(MANY)
    assert (encoder, network.dimension) == ("tiny", bank.text_direction.shape[1])
    bank.check_encoder(FrozenCLIP.tiny())
    assert bank.objectives == tuple(read_sentences(MANY / "sentences.txt", FusionObjective()))


def test_it_follows_sentences_everywhere_and_in_regions():
    network, bank, _ = load_trained(MANY)
    texts = [objective.fused[0] for objective in bank.objectives]
    told = {text: bank.text_direction[row] for row, text in enumerate(texts)}
    pair = read_pair(find_pairs(folders_of(None))[3])
    device = torch.device("cpu")

    def fused(*sentences, regions=None):
        vectors = torch.stack([told[text] for text in sentences])
        vectors = vectors[0] if regions is None else vectors
        return fuse_with(network, pair, device, vectors, regions=regions)[0].float()

    dark, papers, bright = (fused(text) for text in ("a dark image", PAPER, "a bright image"))
    assert dark.mean() + 20 < papers.mean() < bright.mean() - 5
    hot = hot_region(pair.infrared)
    both = fused("a dark image", "a bright image", regions=hot.long()[None])
    assert both[~hot].mean() < 1.15 * dark[~hot].mean()
    assert both[hot].mean() > dark[hot].mean() + 0.7 * (bright - dark)[hot].mean()


def test_the_command_of_its_readme(tmp_path, capsys):
    given = '--checkpoint MANY --prompt "a dark image" --region hot "a bright image" --out'
    assert given.replace("MANY", "examples/data/many") in (MANY / "README.md").read_text("utf-8")
    region = ["--region", "hot", "a bright image"]
    arguments = ["--checkpoint", MANY, "--prompt", "a dark image", *region, "--out", tmp_path]
    fuse.main(list(map(str, arguments)))
    assert "5 fused" in capsys.readouterr().out


@pytest.mark.slow
def test_the_scenes_of_its_training(tmp_path, monkeypatch):
    scenes = runpy.run_path(str(MANY / "scenes.py"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(scenes["main"].__globals__, "SCENES", 2)
    scenes["main"](tmp_path)
    files = find_pairs(folders_of(tmp_path))
    assert len(files) == 2 + 5 * 10
    assert read_pair(files[0]).visible.shape == (1, 320, 320)
    assert read_image(files[-1].visible).shape == read_pair(files[-1]).infrared.shape
