"""The app: what it makes of images and sentences, bad input, and its page in a real browser."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import replace
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pytest
import tifffile
import torch
from image_files import COLOUR, GREY, noise, write
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra `app`")
import app
from clip_fusion_loss import EmbeddedFusionModel, FrozenCLIP, FusionObjective
from networks.unet import FusionUNet
from networks.weights import SENTENCES, load_trained, save_trained
from pairs import Pair, luminance

CPU = torch.device("cpu")
SENTENCES_OF_TRAINING = [*FusionObjective().fused, "a dark image", "a bright image"]
STEP = 0.1  # on the logit scale, of the network below
DEEP = (np.arange(40 * 48) * 30).astype(np.uint16).reshape(40, 48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that does nothing but shift brightness, from dark to bright sentences."""
    folder = tmp_path_factory.mktemp("run")
    bank = EmbeddedFusionModel(SENTENCES_OF_TRAINING, FrozenCLIP.tiny())
    network = FusionUNet(bank.text_direction.shape[1])
    with torch.no_grad():
        first, _, last = network.modulation
        first.weight[:2] = torch.stack([brightness(bank), -brightness(bank)])
        first.bias.zero_()
        last.weight[-1, :2] = torch.tensor([STEP, -STEP])
    save_trained(network, folder, "unet", "tiny")
    bank.save(folder / SENTENCES)
    return folder


def brightness(bank):
    dark, bright = bank.text_direction[1:3]
    return torch.nn.functional.normalize(bright - dark, dim=0)


@pytest.fixture(scope="module")
def fuser(checkpoint):
    return app.Fuser(load_trained(checkpoint), None, CPU)


@pytest.fixture(scope="module")
def pair():
    visible, infrared = (torch.from_numpy(noise(seed, 1, 64, 96)) for seed in (0, 1))
    return Pair("scene", visible, infrared)


def expected(pair, vector, bank, strength=1.0):
    """The same network in float64, by hand."""
    visible, infrared = (luminance(image).double().logit(0.01) for image in pair[1:])
    direction = vector.double() / vector.double().norm() * len(vector) ** 0.5
    shift = STEP * brightness(bank).double() @ direction
    return 255 * ((visible + infrared) / 2 + strength * shift).sigmoid()


def test_sentence_opposite_share_and_strength(fuser, pair):
    clear, dark, bright = fuser.bank.text_direction
    opposite = FusionObjective("a clear image", opposite="a dark image")
    cases = {
        app.Wish("a dark image"): (dark, 1),
        app.Wish("a dark image", other="a bright image", share=0.25): (
            torch.lerp(dark, bright, 0.25),
            1,
        ),
        app.Wish("a clear image", opposite="a dark image"): (
            EmbeddedFusionModel(opposite, FrozenCLIP.tiny()).text_direction,
            1,
        ),
        app.Wish("a bright image", strength=0): (bright, 0),
        app.Wish("a bright image", strength=1.5): (bright, 1.5),
        app.Wish(fuser.presets[0], region="a dark image"): (clear, 1),  # nothing is painted
    }
    for wish, (vector, strength) in cases.items():
        fused = fuser.fuse(pair, wish)
        assert fused.dtype == torch.uint8
        by_hand = expected(pair, vector, fuser.bank, strength)
        inside = (by_hand > 5) & (by_hand < 250)  # nearer to the ends a grey level is many logits
        # A strength of 1.5 also stretches the rounding of the network's image to 8 bits.
        assert (fused - by_hand)[inside].abs().max() <= 0.6 + strength, wish


def test_a_region_has_its_own_sentence(fuser, pair):
    mask = torch.arange(96).expand(64, 96) >= 48
    wish = app.Wish("a dark image", region="a bright image")
    dark, bright = (fuser.fuse(pair, app.Wish(text)) for text in (wish.sentence, wish.region))
    fused = fuser.fuse(pair, wish, mask)
    assert torch.equal(fused[..., :36], dark[..., :36])  # 12 pixels from the seam
    assert torch.equal(fused[..., 60:], bright[..., 60:])
    assert torch.equal(fuser.fuse(pair, wish, mask | True), bright)


def test_colours_are_those_of_the_visible_image(fuser):
    visible = torch.from_numpy(COLOUR).permute(2, 0, 1) // 2 + 64
    fused = fuser.fuse(Pair("c", visible, visible[:1]), app.Wish("a dark image"))
    inside = ((fused > 0) & (fused < 255)).all(0)
    before, after = (image[0].int() - image[1].int() for image in (visible, fused))
    assert inside.float().mean() > 0.5
    assert (before - after)[inside].abs().max() <= 1


def test_unknown_words(fuser):
    assert fuser.unknown_words("A dark, zebra-like IMAGE of a zebra") == ["zebra", "like"]
    with pytest.raises(ValueError, match="Not one known word in 'zebra'; try one"):
        fuser.vector("a dark image", "zebra")


def test_only_sentences_in_use_are_told(fuser, pair):
    wish = app.Wish("a dark image", "a hazy image", "zebra", region="gnu")
    assert wish.texts_in_use(wish.region_in(pair)).strip() == "a dark image a hazy image"
    fuser.fuse(pair, wish)  # and nothing else is embedded
    painted = torch.ones(64, 96, dtype=torch.bool)
    wish = replace(wish, share=0.5)
    assert wish.texts_in_use(wish.region_in(pair, painted)).endswith(" zebra gnu")
    assert replace(wish, region="").region_in(pair, painted) is None


def bomb(path):
    """A PNG whose header tells 200 megapixels."""
    write(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20_000, 10_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def deep_bomb(path):
    tifffile.imwrite(path, GREY.astype(np.uint16))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(20_000)
        tiff.pages[0].tags["ImageLength"].overwrite(10_000)


def test_hot_objects_are_a_region(fuser):
    infrared = torch.full((1, 128, 192), 40, dtype=torch.uint8)
    infrared[:, 50:80, 60:90] = 220
    pair = Pair("scene", torch.from_numpy(noise(0, 1, 128, 192)), infrared)
    wish = app.Wish("a dark image", region="a bright image", hot=True)
    dark, bright = (fuser.fuse(pair, app.Wish(text)) for text in (wish.sentence, wish.region))
    painted = torch.arange(192).expand(128, 192) >= 160
    fused = fuser.fuse(pair, wish, wish.region_in(pair, painted))
    assert torch.equal(fused[:, 62:68, 72:78], bright[:, 62:68, 72:78])
    assert torch.equal(fused[..., 176:], bright[..., 176:])
    assert torch.equal(fused[..., :30], dark[..., :30])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "The infrared image is missing"),
        (lambda path: path.write_text("a dark image"), "ir.png: cannot be read"),
        (lambda path: write(path, noise(0, 30, 48)), "ir.png: is 48 x 30, its visible image 48 x"),
        (bomb, "ir.png: has 20000 x 10000 pixels, more than 16 megapixels"),
        (deep_bomb, "ir.png: has 20000 x 10000 pixels, more than 16 megapixels"),
    ],
    ids=["missing", "text", "size", "png bomb", "tiff bomb"],
)
def test_bad_uploads(tmp_path, make, message):
    write(tmp_path / "vi.png")
    if make:
        make(tmp_path / "ir.png")
    files = tmp_path / "vi.png", tmp_path / "ir.png" if make else None
    with pytest.raises(ValueError, match=message) as caught:
        app.read_upload(*(path and str(path) for path in files))
    assert str(tmp_path) not in str(caught.value)


def test_16_bit_uploads(tmp_path):
    write(tmp_path / "vi.png", COLOUR)
    tifffile.imwrite(tmp_path / "ir.tiff", DEEP)
    pair = app.read_upload(str(tmp_path / "vi.png"), str(tmp_path / "ir.tiff"))
    assert pair.visible.shape == (3, 40, 48)
    assert len(pair.infrared.unique()) > 200


def test_a_network_for_one_sentence_is_refused(tmp_path):
    save_trained(FusionUNet(), tmp_path, "unet", "tiny")
    with pytest.raises(SystemExit, match="takes no sentence"):
        app.main(["--checkpoint", str(tmp_path), "--device", "cpu"])


# The page in a browser.

PATIENCE = 300  # seconds, of which an idle machine needs few

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",  # which root needs
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory):
    """The address of the running program, which must not ask anything of the proxy it is told."""
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict.fromkeys(names, address)}
        environment["TMPDIR"] = str(temporary := tmp_path_factory.mktemp("temporary"))
        command = [sys.executable, app.__file__, "--checkpoint", checkpoint, "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}/" in line
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.communicate()
        assert [path for path in temporary.rglob("*") if path.is_file()] == []
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody waits to be accepted
            proxy.accept()


class Page:
    """What a user does and sees."""

    def __init__(self, page, url):
        self.page, self.url, self.requests = page, url, []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        self.wait_for(lambda image: image.shape == (448, 620))

    def type(self, box, text):
        self.page.fill(f"#{box} textarea, #{box} input", text)

    def move(self, slider, key):
        self.page.focus(f"#{slider} input[type=range]")
        self.page.keyboard.press(key)

    def upload(self, kind, path):
        self.page.set_input_files(f"#upload-{kind} input[type=file]", path)

    def image(self, box="fused"):
        source = self.page.evaluate(f"document.querySelector('#{box} img')?.src")
        if source is None:
            return np.zeros((1, 1))
        with urllib.request.urlopen(source) as response:
            return np.asarray(Image.open(BytesIO(response.read())).convert("L"), np.int16)

    def wait_for(self, condition):
        """The fused image, as soon as it is as it should be."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if condition(image := self.image()):
                return image
            self.page.wait_for_timeout(50)
        raise AssertionError(f"it stays {image.shape}, mean {image.mean()}")

    def wait_for_status(self, text):
        self.page.locator("#status", has_text=text).wait_for()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    page = Page(browser.new_page(viewport={"width": 1280, "height": 1400}), served)
    yield page
    page.page.close()


@pytest.mark.slow
def test_sentences_and_sliders_move_the_image(page, tmp_path):
    page.type("sentence", "a dark image")
    dark = page.wait_for(lambda image: image.mean() < 60)
    page.type("other", "a bright image")
    page.move("share", "End")
    bright = page.wait_for(lambda image: image.mean() > 120)
    page.move("share", "Home")
    assert np.array_equal(dark, page.wait_for(lambda image: image.mean() < 60))
    page.move("strength", "Home")
    average = page.wait_for(lambda image: 60 < image.mean() < 120)
    assert (dark <= average + 1).all()
    assert (average <= bright + 1).all()
    page.move("strength", "End")
    page.wait_for(lambda image: image.mean() < dark.mean() - 5)
    with page.page.expect_download() as download:
        page.page.click("#download")
    assert download.value.suggested_filename == "8-a-dark-image.png"
    download.value.save_as(tmp_path / "fused.png")
    with Image.open(tmp_path / "fused.png") as image:
        assert np.array_equal(np.asarray(image), page.image())
    page.page.get_by_text("a bright image", exact=True).first.click()  # a preset
    page.wait_for(lambda image: image.mean() > 120)
    page.type("sentence", "a bright zebra image")
    page.wait_for_status("Not known to this CLIP, and left out: zebra")
    page.type("sentence", "zebra")
    page.wait_for_status("Not one known word in 'zebra'; try one of the sentences above.")
    page.wait_for_status("The fused image above is still the previous one.")
    page.type("sentence", "an image without haze")
    page.wait_for_status("CLIP hardly heeds 'without'; use What it should not be instead")
    page.type("sentence", " ")
    page.wait_for_status("Say in words what the fused image should be")
    ours = (page.url, f"blob:{page.url}", "data:")
    assert [url for url in page.requests if not url.startswith(ours)] == []


@pytest.mark.slow
def test_painting_a_region(page):
    page.type("sentence", "a bright image")
    page.type("region", "a dark image")
    bright = page.wait_for(lambda image: image.mean() > 120)
    canvas = page.page.locator("#canvas canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = page.page.mouse
    mouse.move(x - 40, y)
    mouse.down()
    for right in range(-40, 41, 10):
        mouse.move(x + right, y)
        page.page.wait_for_timeout(50)  # as a hand does; it is drawn frame by frame
    mouse.up()
    middle = slice(220, 228), slice(280, 340)
    painted = page.wait_for(lambda image: image[middle].mean() < bright[middle].mean() - 40)
    assert np.array_equal(painted[:, :160], bright[:, :160])
    assert np.array_equal(painted[:120], bright[:120])


@pytest.mark.slow
def test_pairs_of_ones_own(page, tmp_path):
    page.page.locator("#examples button img").first.click()
    page.wait_for(lambda image: image.shape == (268, 360))
    write(tmp_path / "vi.png", noise(0, 64, 96, 3))
    tifffile.imwrite(tmp_path / "ir.tif", noise(1, 64, 96).astype(np.uint16) * 50 + 7000)
    (tmp_path / "text.png").write_text("a dark image")
    write(tmp_path / "small.png", noise(2, 64, 95))
    page.upload("visible", tmp_path / "vi.png")
    page.wait_for_status("The infrared image is missing")
    for name, message in {
        "text.png": "text.png: cannot be read",
        "small.png": "small.png: is 95 x 64, its visible image 96 x 64 pixels",
    }.items():
        page.upload("infrared", tmp_path / name)
        page.wait_for_status(message)
        assert page.image().shape == (268, 360)  # what was there stays
        page.page.click("#upload-infrared button[aria-label=Clear]")
        page.wait_for_status("The infrared image is missing")
    page.upload("infrared", tmp_path / "ir.tif")
    page.wait_for(lambda image: image.shape == (64, 96))
    page.wait_for_status("96 x 64 pixels")
    assert page.image("infrared").max() > 250  # of 16 bits, stretched


@pytest.mark.slow
def test_no_file_can_be_read_and_nobody_else_connects(served, checkpoint, tmp_path):
    def answer(path):
        try:
            with urllib.request.urlopen(f"{served}gradio_api/file={path}") as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    with urllib.request.urlopen(f"{served}config") as response:
        config = json.load(response)
    shown = next(
        value["path"]
        for value in (component["props"].get("value") for component in config["components"])
        if isinstance(value, dict) and "path" in value
    )
    assert answer(shown) == 200
    folder = shown.rpartition("/")[0]
    for path in (
        __file__,
        app.__file__,
        "setup.cfg",
        "/etc/passwd",
        "file:///etc/passwd",
        checkpoint / SENTENCES,
        f"{folder}/../../../../../../etc/passwd",
        f"{folder}/..%2f..%2f..%2f..%2fetc/passwd",
        folder,
    ):
        assert answer(path) == 403, path
    assert not config["analytics_enabled"]

    # An upload that names files of this machine is refused.
    write(tmp_path / "secret.png")
    file = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    upload = next(
        each for each in config["dependencies"] if len(each["inputs"]) == 2 == len(each["targets"])
    )
    asked = {"data": [file, file], "fn_index": upload["id"], "session_hash": "s"}
    request = urllib.request.Request(
        f"{served}gradio_api/queue/join",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 200
    with urllib.request.urlopen(f"{served}gradio_api/queue/data?session_hash=s") as response:
        events = [json.loads(line[6:]) for line in response if line.startswith(b"data: ")]
    assert [each["success"] for each in events if each["msg"] == "process_completed"] == [False]

    # Another address of this machine, at which a server for all addresses would answer.
    with pytest.raises(OSError, match="."):
        socket.create_connection(("127.0.0.2", urlsplit(served).port), timeout=5)
