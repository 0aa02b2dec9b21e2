"""What one writes to load a CLIP, the files that are found for it, and what is said otherwise."""

import json
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from clip_files import (
    IMAGES,
    RESNET,
    TEXTS,
    assert_equals_theirs,
    assert_same_vectors,
    make_archives,
    refused,
    renamed,
    transformers_clip,
)
from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip

# Of transformers and of the hub's client about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL_TEXT = MODEL_CONFIG["text_cfg"]


def know(monkeypatch, name, config):
    """`name` as one of open_clip's architectures."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


@pytest.fixture
def unreachable(monkeypatch):
    # A port at which nobody answers; the client's own retries would take most of a minute.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


VIT = "ViT-B-32-quickgelu"


class TestNames:
    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            (("ViT-B32", "openai"), ValueError, "list_models.*'ViT-B32'"),
            ((__file__,), ValueError, "`model_name`.*a file of weights is passed as `pretrained`"),
            ((VIT, "opnai"), ValueError, "laion400m_e31.*'opnai'"),
            ((VIT, None), ValueError, "`pretrained`"),
            ((VIT, ""), ValueError, "`pretrained`"),
            (("ViT-B-32", "openai"), ValueError, rf"\(QuickGELU\).*use '{VIT}'"),
            ((VIT, Path("none.safetensors")), FileNotFoundError, "none.safetensors"),
            (("local-dir:none",), FileNotFoundError, "`model_name`.*none, which holds nothing"),
        ],
    )
    def test_wrong_ones(self, arguments, error, words):
        with pytest.raises(error, match=words):
            FrozenCLIP.from_pretrained(*arguments)

    @pytest.mark.parametrize(
        ("theirs", "ours"), [("RN50", "RN50"), ("ViT-L/14@336px", "ViT-L-14-336-quickgelu")]
    )
    def test_those_of_openai(self, theirs, ours, monkeypatch, archives):
        kind, config = ("RN", RESNET) if theirs.startswith("RN") else ("ViT", MODEL_CONFIG)
        know(monkeypatch, ours, {**config, "quick_gelu": ours.endswith("-quickgelu")})
        path = archives[kind][1]
        loaded = FrozenCLIP.from_pretrained(theirs, path)
        assert loaded.name.endswith(f"-quickgelu/{path}")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_archives(tmp_path_factory.mktemp("archives"))


class TestFiles:
    def test_home_folder(self, clip_model, tokenizer, small_architecture, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        torch.save(clip_model.state_dict(), tmp_path / "weights.pt")
        loaded = FrozenCLIP.from_pretrained(small_architecture, "~/weights.pt")
        assert_same_vectors(loaded, FrozenCLIP(clip_model, tokenizer))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda state: state.pop("ln_final.weight"), r"Missing key\(s\).*ln_final.weight"),
            (lambda state: state.update(more=torch.ones(1)), r"Unexpected key\(s\).*more"),
            # Of another input size, which is not interpolated.
            (
                lambda state: state.update({"visual.positional_embedding": torch.ones(65, 32)}),
                "visual.positional_embedding",
            ),
        ],
    )
    def test_every_weight_and_no_other(self, change, words, small_architecture, tmp_path):
        state = build_clip().state_dict()
        change(state)
        torch.save(state, tmp_path / "weights.pt")
        assert len(refused(words, tmp_path / "weights.pt")) < 900

    def test_mean_and_std_of_the_models_published_weights(self, monkeypatch, tmp_path):
        know(monkeypatch, "ViT-B-16-SigLIP", MODEL_CONFIG)
        torch.save(build_clip().state_dict(), tmp_path / "weights.pt")
        loaded = FrozenCLIP.from_pretrained("ViT-B-16-SigLIP", tmp_path / "weights.pt")
        assert loaded._mean.flatten().tolist() == [0.5, 0.5, 0.5]


class TestFolders:
    def test_of_open_clip(self, clip_model, tmp_path):
        values = {"mean": [0.5] * 3, "std": [0.25] * 3}
        config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": values}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        state = clip_model.state_dict()
        safetensors.torch.save_file(state, tmp_path / "open_clip_model.safetensors")
        loaded = FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        images = torch.rand(1, 3, 32, 32)
        expected = F.normalize(clip_model.eval().visual((images - 0.5) / 0.25), dim=-1)
        torch.testing.assert_close(loaded.encode_image(images), expected)
        assert loaded.name == f"local-dir:{tmp_path}"

    def test_with_a_tokenizer_of_transformers(self, tmp_path):
        """As SigLIP has it, with the tokenizer's files in the folder."""
        transformers = pytest.importorskip("transformers")
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = ["<pad>", "<unk>", "a", "gray", "image"]
        tokenizer = Tokenizer(
            models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
        ).save_pretrained(tmp_path)
        text = {**SMALL_TEXT, "hf_tokenizer_name": "timm/ViT-tiny-SigLIP"}
        config = {"model_cfg": {**MODEL_CONFIG, "custom_text": True, "text_cfg": text}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        safetensors.torch.save_file(
            build_clip().state_dict(), tmp_path / "open_clip_model.safetensors"
        )
        tokens = torch.zeros(1, 24, dtype=torch.long)
        tokens[0, :3] = torch.tensor([2, 3, 4])
        expected = F.normalize(build_clip().eval().encode_text(tokens), dim=-1).detach()
        encoder = FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        torch.testing.assert_close(encoder.encode_text("a gray image"), expected)

    def test_without_weights_it_is_not_random(self, tmp_path):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG}))
        with pytest.raises(FileNotFoundError, match="which holds open_clip_config.json"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")

    @pytest.mark.parametrize("content", ["{", "[1]"])
    def test_damaged_config(self, content, tmp_path):
        (tmp_path / "open_clip_config.json").write_text(content)
        (tmp_path / "open_clip_model.safetensors").touch()
        with pytest.raises(ValueError, match="valid JSON files, got .*open_clip_config.json"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("transformers")
    return transformers_clip()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip-vit-tiny"
    model.save_pretrained(folder)
    return folder


class TestTransformers:
    """Hugging Face transformers' CLIPModel: its vectors are those of transformers."""

    @pytest.mark.parametrize("prefix", ["local-dir:", ""])
    def test_folder(self, prefix, folder, model):
        encoder = FrozenCLIP.from_pretrained(f"{prefix}{folder}")
        assert_equals_theirs(encoder, model)
        assert encoder.image_size == (32, 32)

    @pytest.mark.parametrize(("kind", "activation"), [("bin", "gelu"), ("half", "quick_gelu")])
    def test_folders_of_other_makes(self, activation, kind, tmp_path):
        model = transformers_clip(activation)
        if kind == "half":
            model.half().save_pretrained(tmp_path)
            model.float()
        else:
            model.config.save_pretrained(tmp_path)
            state = model.state_dict()
            # As older versions wrote it.
            state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
            torch.save(state, tmp_path / "pytorch_model.bin")
        assert_equals_theirs(FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}"), model)

    MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

    @pytest.mark.parametrize(
        ("name", "content", "mean", "std"),
        [
            ("preprocessor_config.json", {"image_mean": MEAN, "image_std": STD}, MEAN, STD),
            # transformers 5 writes them with CLIPProcessor's own.
            (
                "processor_config.json",
                {"image_processor": {"image_mean": MEAN, "image_std": STD}},
                MEAN,
                STD,
            ),
        ],
    )
    def test_mean_and_std(self, name, content, mean, std, folder, model, tmp_path):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
        assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, mean, std)

    def test_file_alone(self, folder, small_architecture):
        refused("model_name='local-dir:FOLDER'", folder / "model.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model_type": "siglip"}, "transformers CLIPModel.*of type 'siglip'"),
            ({"vision_config": 7}, "transformers CLIPModel.*cannot be built"),
            ({"projection_dim": 48}, "weights that fit"),
        ],
    )
    def test_others_are_refused(self, change, words, folder, tmp_path):
        config = json.loads((folder / "config.json").read_text())
        shutil.copy(folder / "model.safetensors", tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=words):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")


REPOSITORY, COMMIT = "openai/clip-vit-tiny", "0123456789abcdef0123456789abcdef01234567"


class Hub(SimpleHTTPRequestHandler):
    """Serves a folder as the hub does."""

    def translate_path(self, path):
        return super().translate_path(path.replace(f"/{REPOSITORY}/resolve/main", ""))

    def end_headers(self):
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Error-Code", "EntryNotFound")  # looked at if there is none
        self.send_header("ETag", Path(self.path).name)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub that has the model's folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=folder))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield
    server.shutdown()
    server.server_close()


class TestHub:
    def test_download_and_then_the_cache(self, hub, model, tmp_path, monkeypatch):
        name = f"hf-hub:{REPOSITORY}"
        assert_equals_theirs(FrozenCLIP.from_pretrained(name, cache_dir=tmp_path), model)
        # A cache of the model alone, as transformers leaves it, lacks the mean and std.
        for processor in tmp_path.rglob("*processor_config.json"):
            processor.unlink()
        assert_equals_theirs(FrozenCLIP.from_pretrained(name, cache_dir=tmp_path), model)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert_equals_theirs(FrozenCLIP.from_pretrained(name, cache_dir=tmp_path), model)
        folder = tmp_path / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / COMMIT
        assert_equals_theirs(FrozenCLIP.from_pretrained(str(folder)), model)

    def test_repository_without_a_clip(self, hub, tmp_path, monkeypatch):
        monkeypatch.setattr("clip_fusion_loss.loading.CONFIGS", ("no_config.json",))
        with pytest.raises(FileNotFoundError, match=f"{REPOSITORY}.*all its files.*no_config.json"):
            FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "file"),
        [
            ((), "timm/vit_base_patch32_clip_224.openai.*fetch open_clip_model.safetensors"),
            (("hf-hub:org/model",), "org/model.*fetch all its files"),
        ],
    )
    def test_out_of_reach(self, unreachable, tmp_path, arguments, file):
        with pytest.raises(FileNotFoundError, match=f"(?s){file}.*from_pretrained"):
            FrozenCLIP.from_pretrained(*arguments, cache_dir=tmp_path)
        assert not huggingface_hub.constants.HF_HUB_OFFLINE


def documented_table():
    page = Path(__file__).parents[1] / "docs" / "encoders.md"
    codes = re.findall(r"\| `(FrozenCLIP[^`]*)` \|$", page.read_text(), re.MULTILINE)
    assert len(codes) > 8
    return codes


@pytest.mark.parametrize("code", documented_table())
def test_the_documented_table(code, disk, tokenizer):
    names = {"FrozenCLIP": FrozenCLIP, "model": build_clip(), "tokenizer": tokenizer}
    encoder = eval(code, names)
    assert encoder.encode_image(IMAGES).shape == encoder.encode_text(TEXTS).shape == (2, 24)


@pytest.fixture
def disk(files, unreachable, monkeypatch):
    """A folder with all that the table names, and architectures that are small under its names."""
    for name, config in {"ViT-B-32": MODEL_CONFIG, "RN50": RESNET}.items():
        know(monkeypatch, name, config)
        know(monkeypatch, f"{name}-quickgelu", {**config, "quick_gelu": True})
    monkeypatch.chdir(files)
    Path("openai").mkdir(exist_ok=True)  # a folder that is no tag's
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(files))


@pytest.fixture(scope="module")
def files(archives, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("disk"))
        shutil.copy(archives["ViT"][1], "ViT-B-32.pt")
        shutil.copy(archives["RN"][1], "RN50.pt")
        state = build_clip().state_dict()
        torch.save({"state_dict": renamed(state, "module.")}, "epoch_32.pt")
        safetensors.torch.save_file(state, "open_clip_model.safetensors")
        theirs = transformers_clip(text_config={"hidden_size": 32, "num_attention_heads": 2})
        theirs.save_pretrained("clip-vit-base-patch32")
        for name, source in {
            "timm--vit_base_patch32_clip_224.openai": ["open_clip_model.safetensors"],
            "openai--clip-vit-base-patch32": Path("clip-vit-base-patch32").iterdir(),
        }.items():
            snapshot = Path(f"models--{name}", "snapshots", "0" * 40)
            snapshot.mkdir(parents=True)
            for path in source:
                shutil.copy(path, snapshot)
            snapshot.parents[1].joinpath("refs").mkdir()
            snapshot.parents[1].joinpath("refs", "main").write_text("0" * 40)
        Path("my-open-clip").mkdir()
        shutil.copy("open_clip_model.safetensors", "my-open-clip")
        config = json.dumps({"model_cfg": MODEL_CONFIG})
        Path("my-open-clip/open_clip_config.json").write_text(config)
        return Path.cwd()
