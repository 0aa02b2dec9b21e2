"""Type a sentence and see the fused image change: a page in your browser, for you alone.

It needs `pip install -e '.[app]'`. The network comes with the examples; nothing is downloaded, and
nothing leaves this machine.
"""

import argparse
import os
import signal
import tempfile
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
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import options
import pairs
from clip_fusion_loss import EmbeddedFusionModel
from clip_fusion_loss.encoder import NEGATION, WORDS
from masks import hot_region
from networks.weights import Trained, load_trained
from pairs import Pair
from training import fuse_with, load_clip

#: The network that comes with the examples, and the pair that the page shows first.
MANY, FIRST_PAIR = Path(__file__).parent / "data" / "many", "8"
#: Larger uploads would keep the page waiting; fuse.py takes any size.
MAX_MEGAPIXELS = 16
Image.MAX_IMAGE_PIXELS = None  # in place of Pillow's limit, which is said less clearly
#: Fused images on the disk, for the page to show and to download; older ones are deleted.
KEPT_RESULTS = 100
#: A label, to which a message refers.
OPPOSITE = "What it should not be"


@dataclass(frozen=True)
class Wish:
    """What the fused image should be, in sentences, of which empty ones are not used.

    `share` blends from `sentence`, at 0, to `other`, at 1. `strength` goes from the average of the
    sources, at 0, to what the network makes of the sentences, at 1, and on in that direction.
    `region` is for the painted part of the image; if `hot`, also for the warm part.
    """

    sentence: str
    opposite: str = ""
    other: str = ""
    share: float = 0.0
    strength: float = 1.0
    region: str = ""
    hot: bool = False

    def region_in(self, pair: Pair, painted: Tensor | None = None) -> Tensor | None:
        """The (H, W) region; None if it is empty or has no sentence."""
        parts = [painted, hot_region(pair.infrared) if self.hot else None] if self.region else []
        parts = [part for part in parts if part is not None and part.any()]
        return torch.stack(parts).any(0) if parts else None

    def texts_in_use(self, region: Tensor | None) -> str:
        other, inside = self.other if self.share else "", "" if region is None else self.region
        return " ".join((self.sentence, self.opposite, other, inside))


class Fuser:
    """A network for many sentences, and the CLIP for new ones."""

    def __init__(self, trained: Trained, encoder: str | None, device: torch.device) -> None:
        if trained.sentences is None:
            raise ValueError("--checkpoint takes no sentence; train it with train.py --prompts")
        self.network, self.bank, self.device = trained.network.to(device), trained.sentences, device
        self.clip = load_clip(encoder or trained.encoder)
        self.bank.check_encoder(self.clip)
        texts = (" ".join(objective.fused) for objective in self.bank.objectives)
        self.presets = list(dict.fromkeys(texts))

    def unknown_words(self, text: str) -> list[str]:
        """The words that a CLIP with a small vocabulary leaves out of `text`."""
        known = self.clip.vocabulary
        words = dict.fromkeys(WORDS.findall(text.lower()))
        return [] if known is None else [word for word in words if word not in known]

    def vector(self, sentence: str, opposite: str = "") -> Tensor:
        """The text direction (D,); a ValueError if a text has no word that the CLIP knows."""
        opposites = (opposite,) if opposite else ()
        for text in (sentence, *opposites):
            if self.clip.has_no_known_word(text):
                raise ValueError(f"Not one known word in {text!r}; try one of the sentences above.")
        objective = replace(self.bank.objectives[0], fused=sentence, opposite=opposites)
        with options.warnings_as_notes():
            return EmbeddedFusionModel(objective, self.clip).text_direction

    def fuse(self, pair: Pair, wish: Wish, region: Tensor | None = None) -> Tensor:
        """The fused pair in uint8, with the colours of the visible image.

        `region` is of `wish.region_in`. Raises as `vector`.
        """
        vectors, regions = self.vector(wish.sentence, wish.opposite), None
        if wish.other and wish.share:
            vectors = torch.lerp(vectors, self.vector(wish.other, wish.opposite), wish.share)
        if region is not None:
            vectors, regions = torch.stack([vectors, self.vector(wish.region)]), region[None].long()
        fused = fuse_with(self.network, pair, self.device, vectors, regions=regions)
        return pairs.with_chroma_of(pair.visible, strengthened(pair, fused, wish.strength))


def strengthened(pair: Pair, fused: Tensor, strength: float) -> Tensor:
    """On the logit scale, where the network too mixes its sources, no grey level leaves [0, 1]."""
    if strength == 1:
        return fused
    average = sum(pairs.luminance(image).logit(0.01) for image in pair[1:]) / 2
    return pairs.to_8bit(torch.lerp(average, (fused / 255).logit(1 / 512), strength).sigmoid())


def read_upload(visible: str | None, infrared: str | None) -> Pair:
    """The pair in two files. What is wrong is a ValueError that does not name their folders."""
    if not (visible and infrared):
        raise ValueError(f"The {'infrared' if visible else 'visible'} image is missing.")
    files = pairs.PairFiles(Path(visible).stem, Path(visible), Path(infrared))
    for path in files[1:]:
        width, height = size_of(path)
        if width * height > MAX_MEGAPIXELS * 1e6:
            limit = f"more than {MAX_MEGAPIXELS} megapixels; make it smaller, or use fuse.py"
            raise ValueError(f"{path.name}: has {width} x {height} pixels, {limit}")
    try:
        return pairs.read_pair(files)
    except pairs.UnusableImageError as error:
        without = str(error).replace(f"{Path(visible).parent}{os.sep}", "")
        raise ValueError(without.replace(f"{Path(infrared).parent}{os.sep}", "")) from error


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as the file's header tells, before its pixels take memory."""
    with suppress(Exception):  # pairs.py says what is wrong with a file that is no image
        with open(path, "rb") as file:
            is_tiff = file.read(4) in pairs.TIFF_STARTS
        if is_tiff:
            with tifffile.TiffFile(path) as tiff:
                return max((page.imagewidth, page.imagelength) for page in tiff.pages)
        with Image.open(path, formats=pairs.FORMATS) as image:
            return image.size
    return 0, 0


def build_page(fuser: Fuser, examples: Sequence[Pair], folder: Path) -> gr.Blocks:
    """The page. The images that it shows are files in `folder`, which Gradio serves."""
    kept: deque[Path] = deque()
    keep = gr.skip()

    def save(image: Tensor, name: str) -> str:
        path = Path(tempfile.mkdtemp(dir=folder)) / f"{name}.png"
        pairs.save_image(image, path)
        return str(path)

    def show(pair: Pair) -> list[Any]:
        """Values of `shown` for a new pair, on which nothing is painted."""
        infrared, visible = save(pair.infrared, "infrared"), save(pair.visible, "visible")
        canvas = {"background": visible, "layers": [], "composite": visible}
        return [(pair, visible), None, infrared, visible, canvas]

    def choose(event: gr.SelectData) -> list[Any]:
        return show(examples[event.index])

    def upload(*files: str | None) -> list[Any]:
        if not any(files):  # both were cleared
            return [keep] * 6
        try:
            return [*show(read_upload(*files)), keep]
        except ValueError as error:
            return [*[keep] * 5, str(error)]

    def paint(canvas: dict[str, Any] | None, scene: tuple[Pair, str]) -> Tensor | None:
        layers = canvas["layers"] if canvas else []
        if not layers or not layers[0].any():
            return None
        opaque = torch.from_numpy(layers[0][..., 3] / 255)[None, None]
        return F.interpolate(opaque, scene[0].visible.shape[1:])[0, 0] > 0

    def update(scene: tuple[Pair, str], painted: Tensor | None, *values: Any) -> list[Any]:
        wish = Wish(*(value.strip() if isinstance(value, str) else value for value in values))
        pair, visible = scene
        try:
            if not wish.sentence:
                raise ValueError("Say in words what the fused image should be.")
            region = wish.region_in(pair, painted)
            fused = fuser.fuse(pair, wish, region)
        except (ValueError, RuntimeError) as error:  # a RuntimeError may be for lack of memory
            problem = options.remedy_for(error) or str(error)
            return [*[keep] * 3, f"**{problem}** The fused image above is still the previous one."]
        status = f"{fused.shape[2]} x {fused.shape[1]} pixels"
        texts = wish.texts_in_use(region)
        if unknown := fuser.unknown_words(texts):
            status += f". **Not known to this CLIP, and left out: {', '.join(unknown)}**"
        if negation := NEGATION.search(texts):
            status += f". **CLIP hardly heeds {negation[0]!r}; use *{OPPOSITE}* instead**"
        path = save(fused, f"{Path(pair.name).name}-{options.readable_name(wish.sentence)}")
        kept.append(Path(path))
        if len(kept) > KEPT_RESULTS:
            kept.popleft().unlink()
        return [path, (visible, path), path, status]

    presets = fuser.presets
    second, third = (presets[number % len(presets)] for number in (1, 2))
    first = show(next((pair for pair in examples if pair.name == FIRST_PAIR), examples[0]))
    picture = partial(gr.Image, height=300, min_width=240, interactive=False, buttons=[])
    with gr.Blocks(title="Say what the fused image should be", analytics_enabled=False) as page:
        gr.Markdown(
            "# Say what the fused image should be\n"
            "An infrared and a visible image become one, as your sentence describes it. A small "
            "network does it, trained once with the loss of `clip_fusion_loss`, so that you can "
            "see what sentences do."
        )
        sentence = gr.Textbox(
            presets[0], label="Sentence", max_length=300, elem_id="sentence",
            info="It describes the whole image. For people or objects use a region, below.",
        )  # fmt: skip
        samples = gr.Dataset(
            label="Try", components=[sentence], samples=[[t] for t in presets], samples_per_page=100
        )
        with gr.Row():
            infrared = picture(first[2], label="Infrared", elem_id="infrared")
            visible = picture(first[3], label="Visible", elem_id="visible")
            fused = picture(label="Fused", elem_id="fused")
        status = gr.Markdown(elem_id="status")
        with gr.Row():
            with gr.Column():
                opposite = gr.Textbox(label=OPPOSITE, elem_id="opposite")
                other = gr.Textbox(second, label="Second sentence", elem_id="other")
                share = gr.Slider(0, 1, 0, label="Share of the second sentence", elem_id="share")
                strength = gr.Slider(
                    0, 1.5, 1, label="Strength (0: no language)", elem_id="strength"
                )
                download = gr.DownloadButton("Download the fused image (PNG)", elem_id="download")
            with gr.Column():
                canvas = gr.ImageEditor(
                    first[4], label="Paint a region", sources=(), transforms=(), layers=False,
                    brush=gr.Brush(30, colors=["#ff7f0e"], color_mode="fixed"), buttons=[],
                    height=300, elem_id="canvas",
                )  # fmt: skip
                hot = gr.Checkbox(label="Use the warm part of the infrared image", elem_id="hot")
                region = gr.Textbox(
                    third, label="Sentence for the region", elem_id="region",
                    info="Used only where you paint, or with the box ticked.",
                )  # fmt: skip
            with gr.Column():
                compare = gr.ImageSlider(label="Visible | fused", elem_id="compare", buttons=[])
        with gr.Row():
            gallery = gr.Gallery(
                [pair.visible.expand(3, -1, -1).permute(1, 2, 0).numpy() for pair in examples],
                label="Example pairs", columns=len(examples), height=140, scale=2, min_width=320,
                allow_preview=False, object_fit="cover", buttons=[], elem_id="examples",
            )  # fmt: skip
            choose_file = partial(gr.File, file_types=sorted(pairs.READABLE), height=140)
            visible_file = choose_file(label="Your visible image", elem_id="upload-visible")
            infrared_file = choose_file(label="Your infrared image", elem_id="upload-infrared")

        scene, painted = gr.State(first[0]), gr.State()
        wishes = [sentence, opposite, other, share, strength, region, hot]
        shown = [scene, painted, infrared, visible, canvas]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        gallery.select(choose, None, shown, **quiet)
        files = [visible_file, infrared_file]
        gr.on([file.change for file in files], upload, files, [*shown, status], **quiet)
        gr.on([canvas.input, canvas.clear], paint, [canvas, scene], painted, **quiet)
        samples.click(lambda sample: sample[0], samples, sentence, **quiet)
        told = [scene, painted, *wishes]
        results = [fused, compare, download, status]
        changes = [page.load, *(value.change for value in told)]
        gr.on(changes, update, told, results, trigger_mode="always_last", **quiet)
    return page


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_is)
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes then too
    # Gradio serves all that is in its folder, which other programs with Gradio would share.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # It asks itself whether it runs, and must not ask a proxy.
        os.environ["no_proxy"] = f"{os.environ.get('no_proxy', '')},127.0.0.1"
        page = build_page(fuser, examples, Path(folder))
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        page.launch(
            server_name="127.0.0.1", server_port=chosen.port, share=False, quiet=True,
            theme=theme.set(block_info_text_color="*neutral_500"),
            footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False,
            ssr_mode=False, pwa=False, max_file_size="100mb", prevent_thread_lock=True,
        )  # fmt: skip
        print(f"Open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()


if __name__ == "__main__":
    main()
