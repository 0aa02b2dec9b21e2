"""The hub and its cache: answering, silent or out of reach."""

import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from clip_files import assert_equals_theirs, transformers_clip
from clip_fusion_loss import FrozenCLIP

REPOSITORY, COMMIT = "openai/clip-vit-tiny", "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("transformers")
    return transformers_clip()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip-vit-tiny"
    model.save_pretrained(folder)
    return folder


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
            monkeypatch.setattr("clip_fusion_loss.loading.hub.STALL_LIMIT", 0.5)

    yield start
    asleep.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def unreachable(monkeypatch):
    # A port at which nobody answers; the client's own retries would take most of a minute.
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
        with pytest.raises(FileNotFoundError, match=r"no data has come for 0.5 seconds"):
            FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=tmp_path)

    def test_silent_hub_and_a_cache(self, hub, cache, model):
        hub("at once")
        encoder = FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=cache)
        assert_equals_theirs(encoder, model)

    def test_repository_without_a_clip(self, hub, folder, tmp_path, monkeypatch):
        hub()
        monkeypatch.setattr("clip_fusion_loss.loading.sources.CONFIGS", ("no_config.json",))
        with pytest.raises(FileNotFoundError, match=f"all files of {REPOSITORY}"):
            FrozenCLIP.from_pretrained(f"hf-hub:{REPOSITORY}", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ((), r"open_clip_model.safetensors \(or .*\) of timm/vit_base_patch32_clip_224.openai"),
        (("hf-hub:org/model",), "all files of org/model"),
    ],
)
def test_without_a_network(unreachable, tmp_path, arguments, file):
    with pytest.raises(FileNotFoundError, match=f"(?s){file}.*from_pretrained"):
        FrozenCLIP.from_pretrained(*arguments, cache_dir=tmp_path)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
