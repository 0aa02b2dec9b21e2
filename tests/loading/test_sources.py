"""What one writes, and the files that are found for it or the words if there are none."""

import json
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from clip_files import IMAGES, RESNET, TEXTS, assert_same_vectors, make_archives, renamed
from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_archives(tmp_path_factory.mktemp("archives"))


class TestFromPretrained:
    def test_local_dir(self, clip_model, tokenizer, tmp_path):
        config = {
            "model_cfg": MODEL_CONFIG,
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
        }
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        safetensors.torch.save_file(
            clip_model.state_dict(), tmp_path / "open_clip_model.safetensors"
        )
        loaded = FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        images = torch.rand(1, 3, 32, 32)
        expected = F.normalize(clip_model.eval().visual((images - 0.5) / 0.25), dim=-1)
        torch.testing.assert_close(loaded.encode_image(images), expected)
        assert loaded.name == f"local-dir:{tmp_path}"

    def test_local_dir_without_weights_is_not_random(self, tmp_path):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG}))
        with pytest.raises(ValueError, match="could not be loaded"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")

    def test_unknown_model(self):
        with pytest.raises(ValueError, match="'ViT-B32'.*ViT-B-32"):
            FrozenCLIP.from_pretrained("ViT-B32", "openai")

    def test_unknown_tag(self):
        with pytest.raises(ValueError, match="laion400m_e31.*'opnai'"):
            FrozenCLIP.from_pretrained("ViT-B-32-quickgelu", "opnai")

    @pytest.mark.parametrize("pretrained", [None, ""])
    def test_no_weights(self, pretrained):
        with pytest.raises(ValueError, match="`pretrained`"):
            FrozenCLIP.from_pretrained("ViT-B-32-quickgelu", pretrained)

    @pytest.mark.parametrize("tag", ["openai", "laion400m_e32"])
    def test_wrong_activation(self, tag):
        with pytest.raises(ValueError, match=r"\(QuickGELU\).*use 'ViT-B-32-quickgelu'"):
            FrozenCLIP.from_pretrained("ViT-B-32", tag)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="none.safetensors"):
            FrozenCLIP.from_pretrained("ViT-B-32-quickgelu", tmp_path / "none.safetensors")

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path / 'none'}")


def test_home_folder(clip_model, tokenizer, small_architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(clip_model.state_dict(), tmp_path / "weights.pt")
    loaded = FrozenCLIP.from_pretrained(small_architecture, "~/weights.pt")
    assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))


def test_a_file_in_place_of_the_name(tmp_path):
    (tmp_path / "ViT-B-32.pt").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"`model_name`.*the file .*from_pretrained\('ViT-B-32-q"):
        FrozenCLIP.from_pretrained(str(tmp_path / "ViT-B-32.pt"))


def documented_table():
    page = Path(__file__).parents[2] / "docs" / "encoders.md"
    codes = re.findall(r"\| `(FrozenCLIP[^`]*)` \|$", page.read_text(), re.MULTILINE)
    assert len(codes) > 10
    return codes


@pytest.mark.parametrize("code", documented_table())
def test_the_documented_table(code, disk, tokenizer):
    names = {"FrozenCLIP": FrozenCLIP, "model": build_clip(), "tokenizer": tokenizer}
    encoder = eval(code, names)
    assert encoder.encode_image(IMAGES).shape == encoder.encode_text(TEXTS).shape == (2, 24)


@pytest.fixture
def disk(files, monkeypatch):
    """A folder with all that the table names, and architectures that are small under its names."""
    for name in ("ViT-B-32", "RN50", "ViT-B-16-SigLIP"):
        config = RESNET if name == "RN50" else MODEL_CONFIG
        if name == "ViT-B-16-SigLIP":
            text = {**MODEL_CONFIG["text_cfg"], "hf_tokenizer_name": f"timm/{name}"}
            config = {**MODEL_CONFIG, "text_cfg": text}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        quick = {**config, "quick_gelu": True}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, f"{name}-quickgelu", quick)
    monkeypatch.chdir(files)
    Path("openai").mkdir(exist_ok=True)  # a folder that is no tag's
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(files))


@pytest.fixture(scope="module")
def files(archives, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("disk"))
        shutil.copy(archives["ViT"][1], "ViT-B-32.pt")
        shutil.copy(archives["RN"][1], "RN50.pt")
        state = build_clip().state_dict()
        torch.save({"state_dict": renamed(state, "module.")}, "epoch_32.pt")
        for name in ("open_clip_model.safetensors", "siglip.safetensors"):
            safetensors.torch.save_file(state, name)
        published = Path("models--timm--vit_base_patch32_clip_224.openai")
        theirs = Path("models--openai--clip-vit-base-patch32")
        for repository in (published, theirs):
            (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("0" * 40)
        shutil.copy("open_clip_model.safetensors", published / "snapshots" / ("0" * 40))
        config = transformers.CLIPConfig(
            text_config={
                "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 24,
            },
            vision_config={
                "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
            },
            projection_dim=24,
        )  # fmt: skip
        with torch.random.fork_rng():
            transformers.CLIPModel(config).save_pretrained("clip-vit-base-patch32")
        for path in Path("clip-vit-base-patch32").iterdir():
            shutil.copy(path, theirs / "snapshots" / ("0" * 40))
        shutil.copy("clip-vit-base-patch32/model.safetensors", ".")
        Path("my-open-clip").mkdir()
        shutil.copy("open_clip_model.safetensors", "my-open-clip")
        Path("my-open-clip/open_clip_config.json").write_text(
            json.dumps({"model_cfg": MODEL_CONFIG})
        )
        words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="a"))
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", unk_token="a"
        ).save_pretrained("siglip-tokenizer")
        return Path.cwd()
