"""Turn what a user wrote on the command line into a device, a folder, a loss and pairs."""

import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from clip_fusion_loss import FrozenCLIP, LanguageDrivenFusionLoss, StructureLoss
from images import to_8bit
from pairs import Pair, open_pairs
from tiny_clip.renderer import render_pairs

TNO_PAIRS = Path(__file__).parent / "data" / "tno"
RENDERED_PAIRS = 32
#: The paper draws 32 patches an image; fewer make a step cheaper, and noisier.
PATCHES = 8
CHECKPOINT_MODEL = "ViT-B-32-quickgelu"
ENCODERS = (
    f"tiny, which comes with the package; MODEL/TAG as open_clip names them, say "
    f"{CHECKPOINT_MODEL}/openai, downloaded once; MODEL=FILE, say RN50=RN50.pt, with weights of "
    f"open_clip, OpenAI or transformers; a FILE with those of {CHECKPOINT_MODEL}; a FOLDER of "
    "open_clip or of a transformers CLIPModel; hf-hub:ORG/REPO"
)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for None a GPU if there is one.

    Raises:
        ValueError: if nothing can be computed there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} does not work here ({reason}); try cpu") from error
    return device


def make_writable(folder: Path) -> Path:
    """Make the folder if need be; raises an OSError now rather than after the training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"cannot write to --out {folder}: {error.strerror}") from error


def choose_pairs(folder: Path | None, limit: int) -> Sequence[Pair]:
    """The pairs in `folder`, naming on the error stream what is skipped.

    None stands for the five TNO pairs beside the programs, and the word rendered for scenes that
    are drawn.

    Raises:
        OSError, ValueError: if there are none.
    """
    if folder == Path("rendered"):
        return rendered_pairs(min(RENDERED_PAIRS, limit))
    folder = folder or TNO_PAIRS
    pairs, skipped = open_pairs(folder, limit)
    for item in skipped:
        print(f"skipped {item}", file=sys.stderr)
    if len(pairs) == limit:
        print(f"note: at most {limit} pairs are taken; --max-pairs changes that", file=sys.stderr)
    return pairs


def rendered_pairs(count: int) -> list[Pair]:
    """Scenes drawn by the program that the small CLIP was trained with; always the same."""
    visible, infrared = map(to_8bit, render_pairs(count, seed=0))
    names = (f"scene_{number:02d}" for number in range(1, count + 1))
    return [Pair(*pair) for pair in zip(names, visible, infrared, strict=True)]


def build_criterion(encoder: str, generator: torch.Generator) -> LanguageDrivenFusionLoss:
    """The loss with the CLIP that `encoder` names, drawing its patches from `generator`.

    `encoder`: tiny or what `load_clip` takes.

    Raises:
        OSError, ValueError: if there is no such model or its weights cannot be had.
    """
    if encoder == "tiny":
        return LanguageDrivenFusionLoss.tiny(generator=generator)
    return LanguageDrivenFusionLoss(
        encoder=load_clip(encoder),
        regularizer=StructureLoss(),
        num_patches=PATCHES,
        generator=generator,
    )


def load_clip(name: str) -> FrozenCLIP:
    """The CLIP of that name, as `ENCODERS` says; raises likewise."""
    if name.startswith(("local-dir:", "hf-hub:")) or Path(name).is_dir():
        return FrozenCLIP.from_pretrained(name)
    if Path(name).is_file():
        return FrozenCLIP.from_pretrained(CHECKPOINT_MODEL, Path(name))
    model, equals, path = name.partition("=")
    if equals:
        return FrozenCLIP.from_pretrained(model, Path(path))
    model, slash, tag = name.rpartition("/")
    if not slash:
        raise ValueError(f"--encoder must be {ENCODERS}, got {name}")
    try:
        return FrozenCLIP.from_pretrained(model, tag)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\n(here: --encoder MODEL=FILE or FOLDER)") from error


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print warnings meant for the user as plain lines, without the code that raised them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {message}", file=sys.stderr)
