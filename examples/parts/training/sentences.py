"""Sentences of a conditioned network: read the file of --prompts, make vectors for inference."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_fusion_loss import EmbeddedFusionModel
from parts.files import readable_name
from parts.losses.language import load_clip
from parts.networks.conditioned import Conditioned, told

#: Largest weight of a sentence; sums of such weights do not overflow.
HEAVIEST = 1e6

#: Largest number of steps of --blend, whose folders are named by whole percentages.
MOST_STEPS = 101


def read_sentences(path: Path) -> dict[str, float]:
    """The sentences in a file of train.py's --prompts, with their weights.

    Each line has one sentence, optionally after a weight and a bar, as in ``2.5 | a dark image``.
    Weights are above 0 and at most `HEAVIEST`; the default is 1. Empty lines and lines that begin
    with # are ignored.

    Raises:
        OSError, ValueError: the file cannot be read, has no sentence, or a line is wrong.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise OSError(f"--prompts {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} must be text in UTF-8: {error}; save it so") from error
    sentences: dict[str, float] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        place = f"--prompts {path}, line {number}"
        weight, bar, sentence = line.partition("|")
        if not bar:
            weight, sentence = "1", line
        sentence = sentence.strip()
        if not sentence:
            raise ValueError(f"{place}: a sentence must follow the bar, got {line!r}")
        if sentence in sentences:
            raise ValueError(
                f"{place}: each sentence must be listed once, got {sentence!r} again; to draw it "
                "more often give it a weight, as in 2.5 | a dark image"
            )
        sentences[sentence] = _weight(weight.strip(), place)
    if not sentences:
        raise ValueError(
            f"--prompts {path} must hold a sentence a line, got none; write at least one, "
            "such as: a dark image"
        )
    return sentences


def _weight(text: str, place: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= HEAVIEST:
        raise ValueError(
            f"{place}: the weight before the bar must be above 0 and at most {HEAVIEST:.0f}, got "
            f"{text!r}; write for example 2.5 | a dark image, or the sentence alone"
        )
    return weight


def vectors_of(texts: Iterable[str], bank: EmbeddedFusionModel, encoder: str) -> dict[str, Tensor]:
    """The (D,) text direction of each text, as input for a network that was trained with `bank`.

    Args:
        texts: descriptions of the fused image. Those in the bank are looked up; new ones are
            embedded with the bank's texts for the sources.
        bank: the sentences of the training.
        encoder: the CLIP of the training, see `load_clip`; only loaded for new texts.

    Raises:
        OSError, ValueError: the CLIP is not available or not that of the training, or a text is
            unusable.
    """
    known = {
        objective.fused: vector
        for objective, vector in zip(bank.objectives, bank.text_direction, strict=True)
    }
    wanted = [(text,) for text in dict.fromkeys(texts)]
    new = [text for text in wanted if text not in known]
    if new:
        clip = load_clip(encoder)
        try:
            bank.check_encoder(clip)
        except ValueError as error:
            raise ValueError(
                f"--encoder must be the CLIP that the network was trained with, "
                f"{bank.encoder_name!r}, got {encoder} with other weights or another text tower; "
                "name the file or model of the training"
            ) from error
        objectives = [replace(bank.objectives[0], fused=text) for text in new]
        embedded = EmbeddedFusionModel(objectives, clip).text_direction
        known |= dict(zip(new, embedded, strict=True))
    return {text: known[text,] for (text,) in wanted}


def told_by_folder(
    network: Conditioned,
    prompts: Sequence[str],
    blend: tuple[str, str, int] | None,
    bank: EmbeddedFusionModel,
    encoder: str,
) -> dict[str, nn.Module]:
    """`network` with each of the sentences, by the folder for its fused images.

    Args:
        network: trained with `bank`.
        prompts: sentences, one folder each.
        blend: two sentences and a number of steps, 2 to `MOST_STEPS`: one folder per step, named
            by the share of the second sentence in percent.
        bank, encoder: as in `vectors_of`, which lists the errors.
    """
    ends = blend[:2] if blend else ()
    vectors = vectors_of([*prompts, *ends], bank, encoder)
    by_folder = {folder_name(text): vectors[text] for text in prompts}
    if blend:
        first, second, steps = *ends, blend[2]
        folder = f"{folder_name(first)}_{folder_name(second)}"
        for step in range(steps):
            share = step / (steps - 1)
            vector = torch.lerp(vectors[first], vectors[second], share)
            by_folder[f"{folder}/{round(100 * share):03d}"] = vector
    return {folder: told(network, vector) for folder, vector in by_folder.items()}


def folder_name(sentence: str) -> str:
    """A readable folder name such as a-dark-image; with a digest if the sentence was changed."""
    words = readable_name(sentence)
    if words.replace("-", " ") == sentence:
        return words
    return f"{words}-{hashlib.sha256(sentence.encode()).hexdigest()[:8]}".strip("-")
