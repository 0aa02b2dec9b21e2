"""Hugging Face transformers' CLIPModel: folders, files, parts, the hub and its cache."""

import json
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip
from reference import MEAN, STD

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3,
    "max_position_embeddings": 24, "projection_dim": 24,
}  # fmt: skip
REPOSITORY, COMMIT = "openai/clip-vit-tiny", "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["a visible gray image", "an infrared image"]


def build(activation="quick_gelu"):
    config = transformers.CLIPConfig(
        text_config={**TEXT, "hidden_act": activation},
        vision_config={**VISION, "hidden_act": activation},
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
        for weight in model.parameters():  # theirs start so flat that any mistake is small
            weight.data.add_(torch.randn_like(weight), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip-vit-tiny"
    model.save_pretrained(folder)
    return folder


def assert_equals_theirs(encoder, model, mean=MEAN, std=STD):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=24)(TEXTS)
    with torch.no_grad():
        of_images = model.visual_projection(model.vision_model(normalised).pooler_output)
        of_texts = model.text_projection(model.text_model(tokens).pooler_output)
    for actual, theirs in (
        (encoder.encode_image(images), of_images),
        (encoder.encode_text(TEXTS), of_texts),
    ):
        torch.testing.assert_close(actual, F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
    assert {weight.dtype for weight in encoder.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["local-dir:", ""])
def test_folder(prefix, folder, model):
    encoder = FrozenCLIP.from_pretrained(f"{prefix}{folder}")
    assert_equals_theirs(encoder, model)
    assert encoder.image_size == (32, 32)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("bin", "gelu"), ("parts", "quick_gelu"), ("parts of bin", "gelu"), ("half", "gelu")],
)
def test_folders_of_other_makes(activation, kind, tmp_path):
    model = build(activation)
    if kind == "half":
        model.half().save_pretrained(tmp_path)
        model.float()
    elif kind == "parts":
        model.save_pretrained(tmp_path, max_shard_size="4MB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    else:
        model.config.save_pretrained(tmp_path)
        state = model.state_dict()
        # As older versions wrote it.
        state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
        names = ["pytorch_model.bin"]
        if kind == "parts of bin":
            names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
            parts = {name: names[number % 2] for number, name in enumerate(state)}
            index = tmp_path / "pytorch_model.bin.index.json"
            index.write_text(json.dumps({"weight_map": parts}))
        for number, name in enumerate(names):
            torch.save(dict(list(state.items())[number :: len(names)]), tmp_path / name)
    assert_equals_theirs(FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}"), model)


def test_mean_and_std_of_the_preprocessor(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    text = json.dumps({"image_mean": mean, "image_std": std})
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, mean, std)


def test_mean_and_std_of_the_processor(folder, model, tmp_path):
    """transformers 5 writes them with CLIPProcessor's own."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    content = {"image_processor": {"do_normalize": True, "image_mean": mean, "image_std": std}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, mean, std)


def test_images_that_are_not_normalised(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    text = json.dumps({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert_equals_theirs(FrozenCLIP.from_pretrained(str(tmp_path)), model, [0.0] * 3, [1.0] * 3)


@pytest.fixture
def named(monkeypatch):
    """Its architecture under a name that open_clip knows, as published ones are."""
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": 24, "width": 48, "heads": 3, "layers": 1, "mlp_ratio": 2.0,
        },
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hf-quickgelu", config)
    plain = {**config, "quick_gelu": False}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hf", plain)
    return "tiny-hf-quickgelu"


class TestFile:
    def test_with_the_models_name(self, named, folder, model, tmp_path):
        path = tmp_path / "clip.safetensors"
        shutil.copy(folder / "model.safetensors", path)
        assert_equals_theirs(FrozenCLIP.from_pretrained(named, path), model)

    def test_folder_in_its_place(self, named, folder, model):
        assert_equals_theirs(FrozenCLIP.from_pretrained(named, folder), model)

    def test_in_a_training_checkpoint(self, named, model, tmp_path):
        state = {f"module.clip.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        assert_equals_theirs(FrozenCLIP.from_pretrained(named, tmp_path / "last.ckpt"), model)

    def test_the_config_beside_it_tells_the_activation(self, named, folder):
        with pytest.raises(ValueError, match=r"\(QuickGELU\), got 'tiny-hf'.*use 'tiny-hf-quickg"):
            FrozenCLIP.from_pretrained("tiny-hf", folder / "model.safetensors")

    def test_the_processor_beside_it_tells_mean_and_std(self, named, folder, model, tmp_path):
        shutil.copy(folder / "model.safetensors", tmp_path)
        mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        text = json.dumps({"image_mean": mean, "image_std": std})
        (tmp_path / "preprocessor_config.json").write_text(text)
        encoder = FrozenCLIP.from_pretrained(named, tmp_path / "model.safetensors")
        assert_equals_theirs(encoder, model, mean, std)

    def test_of_another_architecture(self, named, folder, small_architecture):
        with pytest.raises(ValueError, match="a transformers CLIPModel, with the weights of tiny"):
            FrozenCLIP.from_pretrained(small_architecture, folder / "model.safetensors")

    def test_one_part_alone(self, named, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size="4MB")
        part = sorted(tmp_path.glob("*-of-*"))[0]
        with pytest.raises(ValueError, match="one of several parts; pass the folder"):
            FrozenCLIP.from_pretrained(named, part)
        part.unlink()
        with pytest.raises(ValueError, match=f"of which {part.name} is missing"):
            FrozenCLIP.from_pretrained(str(tmp_path))


class TestOtherModels:
    def test_vision_model_alone(self, model, tmp_path):
        vision = transformers.CLIPVisionModelWithProjection(model.config.vision_config)
        vision.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="type 'clip_vision_model'.*only 'clip'"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")
        with pytest.raises(ValueError, match="a transformers CLIPVisionModel: it has no text"):
            FrozenCLIP.from_pretrained("ViT-B-32", tmp_path / "model.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model_type": "siglip"}, "a transformers model of type 'siglip'"),
            ({"text_config": {**TEXT, "vocab_size": 100}}, "a vocabulary of 100 tokens"),
            ({"vision_config": {"hidden_act": "silu"}}, "activations 'silu' and 'quick_gelu'"),
            ({"vision_config": 7}, "it is"),
        ],
    )
    def test_what_open_clip_has_not(self, change, words, folder, tmp_path):
        config = json.loads((folder / "config.json").read_text())
        shutil.copy(folder / "model.safetensors", tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=f"`model_name` must be a CLIP.*{words}"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")

    def test_weights_of_tensorflow_alone(self, folder, tmp_path):
        shutil.copy(folder / "config.json", tmp_path)
        (tmp_path / "tf_model.h5").write_bytes(b"weights")
        with pytest.raises(ValueError, match="file of PyTorch weights.*it holds.*tf_model.h5"):
            FrozenCLIP.from_pretrained(f"local-dir:{tmp_path}")


class Hub(BaseHTTPRequestHandler):
    """Serves a folder as the hub does, or falls silent."""

    def __init__(self, *arguments, folder, silent, asleep):
        self.folder, self.silent, self.asleep = folder, silent, asleep
        super().__init__(*arguments)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        name = self.path.rpartition("/resolve/main/")[2].partition("?")[0]
        path = self.folder / name
        if self.path == "/":
            self.send_response(200)
            self.end_headers()
        elif self.silent == "at once":
            self.asleep.wait()
        elif "/resolve/" not in self.path or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
        else:
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{name}-{len(content)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and self.silent == "in the middle" and len(content) > 10_000:
                self.wfile.write(content[:10_000])
                self.asleep.wait()
            elif body:
                self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(folder, monkeypatch):
    """Starts a hub that has the model's folder."""
    asleep, servers = threading.Event(), []

    def start(silent=None):
        handler = partial(Hub, folder=folder, silent=silent, asleep=asleep)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        if silent:
            monkeypatch.setattr("clip_fusion_loss.hub.STALL_LIMIT", 0.5)

    yield start
    asleep.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def unreachable(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def cache(folder, tmp_path):
    """What the hub's client leaves after a download."""
    repository = tmp_path / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        blob = repository / "blobs" / f"{number:064}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


class TestHub:
    def test_download(self, hub, model, tmp_path):
        hub()
        encoder = FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=tmp_path)
        assert_equals_theirs(encoder, model)

    def test_cache_without_a_network(self, unreachable, cache, model):
        encoder = FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=cache)
        assert_equals_theirs(encoder, model)

    @pytest.mark.parametrize("part", ["", f"snapshots/{COMMIT}"])
    def test_cached_folder(self, cache, model, part):
        repository = next(cache.iterdir())
        assert_equals_theirs(FrozenCLIP.from_pretrained(str(repository / part)), model)

    @pytest.mark.parametrize("silent", ["at once", "in the middle"])
    def test_hub_that_falls_silent(self, silent, hub, tmp_path):
        hub(silent)
        with pytest.raises(FileNotFoundError, match=r"nothing has come for 0.5 seconds"):
            FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=tmp_path)

    def test_silent_hub_and_a_cache(self, hub, cache, model):
        hub("at once")
        encoder = FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=cache)
        assert_equals_theirs(encoder, model)

    def test_repository_without_a_clip(self, hub, folder, tmp_path, monkeypatch):
        hub()
        monkeypatch.setattr("clip_fusion_loss.sources.CONFIGS", ("no_config.json",))
        with pytest.raises(FileNotFoundError, match=f"all files of {REPOSITORY}"):
            FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=tmp_path)


@pytest.fixture
def with_tokenizer_of_the_hub(monkeypatch):
    """As SigLIP's models are: the weights in a file, the tokenizer in a repository."""
    text = {**MODEL_CONFIG["text_cfg"], "hf_tokenizer_name": "timm/ViT-tiny-SigLIP"}
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "siglip", {**MODEL_CONFIG, "text_cfg": text}
    )
    return "siglip"


class TestTokenizer:
    @pytest.fixture
    def weights(self, tmp_path):
        path = tmp_path / "weights.pt"
        torch.save(build_clip().state_dict(), path)
        return path

    def test_offline_the_message_is_of_the_tokenizer(
        self, with_tokenizer_of_the_hub, weights, unreachable, tmp_path
    ):
        with pytest.raises(FileNotFoundError) as caught:
            FrozenCLIP.from_pretrained(with_tokenizer_of_the_hub, weights, cache_dir=tmp_path)
        message = str(caught.value)
        assert "weights are here, but its tokenizer is not" in message.replace(
            f"weights of 'siglip/{weights}'", "weights"
        )
        for words in ("tokenizer.json", "of timm/ViT-tiny-SigLIP", "tokenizer='FOLDER'"):
            assert words in message

    def test_folder_with_its_files(self, with_tokenizer_of_the_hub, weights, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = {
            word: number for number, word in enumerate(["<pad>", "<unk>", "a", "gray", "image"])
        }
        words_only = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        words_only.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words_only, pad_token="<pad>", unk_token="<unk>"
        ).save_pretrained(tmp_path / "tokenizer")
        encoder = FrozenCLIP.from_pretrained(
            with_tokenizer_of_the_hub, weights, tokenizer=tmp_path / "tokenizer"
        )
        tokens = torch.zeros(1, 24, dtype=torch.long)
        tokens[0, :3] = torch.tensor([2, 3, 4])
        expected = F.normalize(build_clip().eval().encode_text(tokens), dim=-1).detach()
        torch.testing.assert_close(encoder.encode_text("a gray image"), expected)

    def test_no_folder(self, weights, small_architecture, tmp_path):
        with pytest.raises(FileNotFoundError, match="`tokenizer`.*none"):
            FrozenCLIP.from_pretrained("small", weights, tokenizer=tmp_path / "none")
        with pytest.raises(TypeError, match="`tokenizer`"):
            FrozenCLIP.from_pretrained("small", weights, tokenizer=7)
