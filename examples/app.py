"""Type a sentence, and see the fused image change: a page in your browser, served to you alone.

It needs `pip install -e '.[app]'`, starts with the network that comes with the examples, downloads
nothing and sends nothing anywhere. --checkpoint takes a network of train.py --prompts.
"""

import argparse
import os
import re
import signal
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while PyTorch is loaded

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

import options
import pairs
from clip_fusion_loss import EmbeddedFusionModel
from networks.weights import Trained, load_trained
from pairs import Pair
from training import fuse_with, load_clip

#: The weights that come with the examples.
MANY = Path(__file__).parent / "data" / "many"
#: Larger images would keep the page waiting; fuse.py takes any size.
MAX_MEGAPIXELS = 16
FIRST_PAIR = "8"
#: Fused images on the disk, for the page to show and to download; older ones are deleted.
KEPT_RESULTS = 100


@dataclass(frozen=True)
class Wish:
    """What the fused image should be, in sentences; empty ones are not used.

    `share` blends from `sentence`, at 0, to `other`, at 1. `strength` is how far to go from the
    average of both sources, at 0, to what the network makes of the sentences, at 1; more
    exaggerates. `region` is a sentence for a part of the image.
    """

    sentence: str
    opposite: str = ""
    other: str = ""
    share: float = 0.0
    strength: float = 1.0
    region: str = ""


class Fuser:
    """A network for many sentences, with the CLIP that embeds new ones."""

    def __init__(self, trained: Trained, encoder: str | None, device: torch.device) -> None:
        if trained.sentences is None:
            raise ValueError("--checkpoint must be the --out of train.py --prompts; this network "
                             "takes no sentence")  # fmt: skip
        self.network, self.bank, self.device = trained.network.to(device), trained.sentences, device
        self.clip = load_clip(encoder or trained.encoder)
        self.bank.check_encoder(self.clip)
        self.presets = [" ".join(objective.fused) for objective in self.bank.objectives]

    def unknown_words(self, text: str) -> list[str]:
        """Words that the CLIP leaves out of `text`: none for one that was trained on any."""
        words = re.findall(r"[^\W_]+", text.lower())
        known = self.clip.vocabulary
        return [] if known is None else [w for w in dict.fromkeys(words) if w not in known]

    def vector(self, sentence: str, opposite: str = "") -> Tensor:
        """The text direction (D,) of a sentence; a ValueError if it has no known word."""
        more = {"opposite": opposite} if opposite else {}
        objective = replace(self.bank.objectives[0], fused=sentence, **more)
        with options.warnings_as_notes():
            return EmbeddedFusionModel(objective, self.clip).text_direction

    def fuse(self, pair: Pair, wish: Wish, mask: Tensor | None = None) -> Tensor:
        """The fused pair as a uint8 image with the colours of the visible one.

        `mask` (H, W) is True where `wish.region` holds. Texts in which the CLIP knows no word are
        a ValueError.
        """
        vector = self.vector(wish.sentence, wish.opposite)
        if wish.other:
            vector = torch.lerp(vector, self.vector(wish.other, wish.opposite), wish.share)
        if wish.region and mask is not None and mask.any():
            vectors = torch.stack([vector, self.vector(wish.region)])
            fused = fuse_with(self.network, pair, self.device, vectors, regions=mask.long()[None])
        else:
            fused = fuse_with(self.network, pair, self.device, vector)
        return pairs.with_chroma_of(pair.visible, strengthen(pair, fused, wish.strength))


def strengthen(pair: Pair, fused: Tensor, strength: float) -> Tensor:
    """Between the average of the sources at 0 and `fused` at 1, and beyond; on the logit scale.

    There no result leaves the range, and the network itself mixes its sources there.
    """
    if strength == 1:
        return fused
    visible, infrared = (pairs.luminance(image).logit(0.01) for image in pair[1:])
    target = (fused / 255).logit(1 / 512)
    return pairs.to_8bit(torch.lerp((visible + infrared) / 2, target, strength).sigmoid())


def read_upload(visible: str | None, infrared: str | None) -> Pair:
    """A pair of uploaded files; whatever is wrong is a ValueError without the server's paths."""
    missing = [name for name, path in (("visible", visible), ("infrared", infrared)) if not path]
    if missing:
        raise ValueError(f"The {missing[0]} image is missing: choose it too.")
    files = pairs.PairFiles(Path(visible).stem, Path(visible), Path(infrared))
    for path in files[1:]:
        width, height = size_of(path)
        if width * height > MAX_MEGAPIXELS * 1e6:
            raise ValueError(
                f"{path.name}: has {width} x {height} pixels, more than {MAX_MEGAPIXELS} "
                "megapixels; make it smaller, or use fuse.py"
            )
    try:
        return pairs.read_pair(files)
    except pairs.UnusableImageError as error:
        raise ValueError(without_folders(error, *files[1:])) from error


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as the header of the file tells, before its pixels take memory."""
    with suppress(Exception):  # what is no image is explained by the one who reads it
        if path.read_bytes()[:4] in pairs.TIFF_STARTS:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                return max((page.imagewidth, page.imagelength) for page in tiff.pages)
        with Image.open(path, formats=pairs.FORMATS) as image:
            return image.size
    return 0, 0


def without_folders(error: Exception, *paths: Path) -> str:
    text = str(error)
    for path in paths:
        text = text.replace(str(path), path.name)
    return text


def build_page(fuser: Fuser, examples: Sequence[Pair], folder: Path) -> gr.Blocks:
    """The page. The images that it shows are files in `folder`, which Gradio serves."""
    results: deque[Path] = deque()
    keep = gr.skip()

    def save(image: Tensor, name: str) -> str:
        path = Path(tempfile.mkdtemp(dir=folder)) / f"{name}.png"
        pairs.save_image(image, path)
        return str(path)

    def show(pair: Pair) -> list[Any]:
        """A new scene, that is the pair and its visible file; its images; and nothing painted."""
        infrared, visible = save(pair.infrared, "infrared"), save(pair.visible, "visible")
        canvas = {"background": visible, "layers": [], "composite": visible}
        return [(pair, visible), None, infrared, visible, canvas]

    def choose(event: gr.SelectData) -> list[Any]:
        return show(examples[event.index])

    def upload(visible_file: str | None, infrared_file: str | None) -> list[Any]:
        if not (visible_file or infrared_file):  # both were cleared
            return [keep] * 6
        try:
            return [*show(read_upload(visible_file, infrared_file)), ""]
        except ValueError as error:
            return [*[keep] * 5, str(error)]

    def paint(canvas: dict[str, Any] | None) -> Tensor | None:
        layers = canvas["layers"] if canvas else []
        return torch.from_numpy(layers[0][..., 3] > 0) if layers else None

    def update(scene: tuple[Pair, str], mask: Tensor | None, *wishes: Any) -> list[Any]:
        wish = Wish(*(value.strip() if isinstance(value, str) else value for value in wishes))
        if not wish.sentence:
            return [*[keep] * 3, "Say in words what the fused image should be."]
        pair, visible = scene
        start = time.perf_counter()
        try:
            fused = fuser.fuse(pair, wish, mask)
        except (ValueError, RuntimeError) as error:  # a RuntimeError may be for lack of memory
            return [*[keep] * 3, options.remedy_for(error) or str(error)]
        seconds = time.perf_counter() - start
        path = save(fused, f"{Path(pair.name).name}-{options.readable_name(wish.sentence)}")
        results.append(Path(path))
        if len(results) > KEPT_RESULTS:
            results.popleft().unlink()
        status = f"{fused.shape[2]} x {fused.shape[1]} pixels in {seconds:.2f} s"
        texts = " ".join((wish.sentence, wish.opposite, wish.other, wish.region))
        if unknown := fuser.unknown_words(texts):
            status += f". **Not known to this CLIP, and left out: {', '.join(unknown)}**"
        return [path, (visible, path), path, status]

    first = next((pair for pair in examples if pair.name == FIRST_PAIR), examples[0])
    picture = partial(gr.Image, height=300, interactive=False, buttons=["fullscreen"])
    with gr.Blocks(title="Say what the fused image should be", analytics_enabled=False) as page:
        gr.Markdown(
            "# Say what the fused image should be\n"
            "One image of an infrared and a visible one, as your sentence describes it."
        )
        sentence = gr.Textbox(
            fuser.presets[0], label="Sentence", max_length=300, elem_id="sentence"
        )
        presets = gr.Dataset(
            label="Try", components=[sentence], samples=[[text] for text in fuser.presets]
        )
        with gr.Row():
            infrared = picture(label="Infrared", elem_id="infrared")
            visible = picture(label="Visible", elem_id="visible")
            fused = picture(label="Fused", elem_id="fused")
        status = gr.Markdown(elem_id="status")
        with gr.Row():
            with gr.Column():
                opposite = gr.Textbox(
                    label="What it should not be", placeholder="a noisy image", elem_id="opposite"
                )
                other = gr.Textbox(fuser.presets[1], label="Second sentence", elem_id="other")
                share = gr.Slider(0, 1, 0, label="Share of the second sentence", elem_id="share")
                strength = gr.Slider(
                    0, 1.5, 1, label="Strength", info="0: no language", elem_id="strength"
                )
                download = gr.DownloadButton("Download the fused image (PNG)", elem_id="download")
            with gr.Column():
                canvas = gr.ImageEditor(
                    label="Paint a region", sources=(), transforms=(), layers=False, buttons=[],
                    brush=gr.Brush(30, colors=["#ff7f0e"], color_mode="fixed"), elem_id="canvas",
                    height=310,
                )  # fmt: skip
                region = gr.Textbox(
                    fuser.presets[2], label="Sentence for the region", elem_id="region"
                )
            compare = gr.ImageSlider(label="Visible | fused", elem_id="compare", buttons=[])
        with gr.Row():
            gallery = gr.Gallery(
                [pair.visible.expand(3, -1, -1).permute(1, 2, 0).numpy() for pair in examples],
                label="Example pairs", columns=len(examples), height=140, scale=2,
                allow_preview=False, object_fit="cover", buttons=[], elem_id="examples",
            )  # fmt: skip
            choose_file = partial(gr.File, file_types=sorted(pairs.READABLE), height=140)
            visible_file = choose_file(label="Your visible image", elem_id="upload-visible")
            infrared_file = choose_file(label="Your infrared image", elem_id="upload-infrared")

        scene, mask = gr.State(), gr.State()
        wishes = [sentence, opposite, other, share, strength, region]
        shown = [scene, mask, infrared, visible, canvas]
        again = {
            "fn": update, "inputs": [scene, mask, *wishes],
            "outputs": [fused, compare, download, status],
            "trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip
        other_events = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(lambda: show(first), None, shown, **other_events).then(**again)
        presets.click(lambda sample: sample[0], presets, sentence, **other_events)
        gallery.select(choose, None, shown, **other_events).then(**again)
        files = [visible_file, infrared_file]
        gr.on(
            [file.change for file in files], upload, files, [*shown, status], **other_events
        ).success(**again)
        canvas.change(paint, canvas, mask, **other_events).then(**again)
        gr.on([wish.change for wish in wishes], **again)
    return page


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = partial(options.add, parser)
    add("--checkpoint", "the --out of train.py --prompts", MANY, type=Path, metavar="DIR")
    add("--encoder", "; for new sentences (default: that of the training)")
    add("--port", "of the page (default: the first free one from 7860)", type=options.whole_number)
    add("--device")
    return parser.parse_args(arguments)


@options.errors_as_messages("app")
def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    device = options.choose_device(chosen.device)
    with options.warnings_as_notes():
        fuser = Fuser(load_trained(chosen.checkpoint), chosen.encoder, device)
    examples = [pairs.read_pair(files) for files in pairs.find_pairs(pairs.folders_of(None))]
    # A folder of its own: Gradio serves all that is in it, and by default it is one for all apps.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Gradio asks its own server whether it runs, and must not ask a proxy instead.
        os.environ["no_proxy"] = f"{os.environ.get('no_proxy', '')},127.0.0.1"
        page = build_page(fuser, examples, Path(folder))
        page.launch(
            server_name="127.0.0.1", server_port=chosen.port, share=False, quiet=True,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False,
            ssr_mode=False, pwa=False, max_file_size="100mb", prevent_thread_lock=True,
        )  # fmt: skip
        print(f"Open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()


if __name__ == "__main__":
    main()
