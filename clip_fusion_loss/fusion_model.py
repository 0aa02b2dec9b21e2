"""EmbeddedFusionModel: the objective as two directions in embedding space."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks, functional
from .building import building
from .encoder import FrozenCLIP
from .frozen import FixedBuffers
from .identity import is_current, same_clip
from .objective import FusionObjective

__all__ = ["EmbeddedFusionModel"]

FORMAT = "clip_fusion_loss.EmbeddedFusionModel/1"


class EmbeddedFusionModel(FixedBuffers):
    """Where the texts say that the fused image lies, seen from each source.

    The texts are embedded once, here. Several texts for a role are averaged and normalised.
    The directions from "visible" and from "infrared" to "fused" are buffers that no checkpoint
    holds and that stay float32 whatever the owner is cast to.

    Args:
        objective: the texts.
        encoder: the CLIP that embeds them.

    Raises:
        TypeError: an argument of another type.
        ValueError: the encoder gives `fused` and a modality the same vector, so that there is
            no direction between them.

    Attributes:
        visible_direction: (D,) float32 unit vector; zero if the encoder has a vocabulary and
            knows no word of `fused`, so that the sentence has no effect.
        infrared_direction: likewise.
        objective: the texts.
        encoder_name: what the encoder is called.
    """

    visible_direction: Tensor
    infrared_direction: Tensor

    @building()
    def __init__(self, objective: FusionObjective, encoder: FrozenCLIP) -> None:
        super().__init__()
        checks.check_type("objective", objective, FusionObjective)
        checks.check_type("encoder", encoder, FrozenCLIP)
        visible_direction, infrared_direction = _text_directions(objective, encoder)
        self._set(
            objective, encoder.name, encoder.fingerprint, visible_direction, infrared_direction
        )

    def _set(
        self,
        objective: FusionObjective,
        encoder_name: str,
        encoder_fingerprint: str,
        visible_direction: Tensor,
        infrared_direction: Tensor,
    ) -> None:
        self.objective = objective
        self.encoder_name = encoder_name
        self.encoder_fingerprint = encoder_fingerprint
        self.register_buffer("visible_direction", visible_direction, persistent=False)
        self.register_buffer("infrared_direction", infrared_direction, persistent=False)

    def forward(
        self, embedding: Tensor, visible_embedding: Tensor, infrared_embedding: Tensor
    ) -> Tensor:
        """Per-sample direction loss; see `functional.direction_loss`.

        Args:
            embedding: (..., D) embeddings of fused images or patches.
            visible_embedding: (..., D) embeddings of the whole visible images.
            infrared_embedding: (..., D) embeddings of the whole infrared images.

        Returns:
            (...) losses in [0, 2].
        """
        return functional.direction_loss(
            embedding,
            visible_embedding,
            infrared_embedding,
            self.visible_direction,
            self.infrared_direction,
        )

    def check_encoder(self, encoder: FrozenCLIP) -> None:
        """Raise a ValueError unless `encoder` is the one whose space the directions lie in."""
        if not is_current(self.encoder_fingerprint):
            raise ValueError(
                "`objective` must be saved by this version, got a file of an older one, which does "
                "not say the CLIP's activation and text tower; where the text tower is, make it "
                "anew with EmbeddedFusionModel(EmbeddedFusionModel.load(path).objective, "
                "encoder).save(path)"
            )
        if not same_clip(encoder.fingerprint, self.encoder_fingerprint):
            raise ValueError(
                f"`encoder` must be the CLIP that embedded the objective, {self.encoder_name!r}, "
                f"got {encoder.name!r} with another activation, input size, mean or std, or other "
                "weights of the image or text tower; embed the objective anew with "
                "EmbeddedFusionModel(objective, encoder)"
            )

    def save(self, path: str | Path) -> None:
        """Write directions, texts and the encoder's identity as safetensors, whole or not at all.

        Args:
            path: the file; an existing one is replaced.

        Raises:
            TypeError: `path` is none.
            OSError: it cannot be written; what was there is left as it was.
        """
        metadata = {
            "format": FORMAT,
            "objective": json.dumps(asdict(self.objective)),
            "encoder_name": self.encoder_name,
            "encoder_fingerprint": self.encoder_fingerprint,
        }
        tensors = {name: buffer.cpu().contiguous() for name, buffer in self.named_buffers()}
        metadata["sha256"] = _digest(metadata, tensors)
        _write_whole(checks.check_path("path", path), safetensors.torch.save(tensors, metadata))

    @classmethod
    @building()
    def load(cls, path: str | Path, encoder: FrozenCLIP | None = None) -> EmbeddedFusionModel:
        """Read what `save` wrote; neither texts nor a text tower are needed.

        Args:
            path: the file.
            encoder: the CLIP it will be used with, to refuse the wrong one here; the loss
                checks it in any case.

        Raises:
            TypeError: an argument of another type.
            FileNotFoundError: there is no such file.
            ValueError: not a whole file of `save`, or made with another encoder.
        """
        path = checks.check_path("path", path)
        checks.check_type("encoder", encoder, FrozenCLIP, optional=True)
        if not path.is_file():
            raise FileNotFoundError(f"`path` must be an existing file, got {path}")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
                objective = FusionObjective(**json.loads(metadata["objective"]))
                names = ("visible_direction", "infrared_direction")
                tensors = {name: file.get_tensor(name) for name in names}
            if metadata.pop("sha256") != _digest(metadata, tensors):
                raise ValueError("its content is not that of its checksum")
            directions = [_as_direction(tensor) for tensor in tensors.values()]
            if directions[0].shape != directions[1].shape:
                raise ValueError("its directions have different lengths")
            model = cls.__new__(cls)
            nn.Module.__init__(model)
            name, fingerprint = metadata["encoder_name"], metadata["encoder_fingerprint"]
            model._set(objective, name, fingerprint, *directions)
        except (
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
            safetensors.SafetensorError,
        ) as error:
            raise ValueError(
                f"`path` must be a whole file written by EmbeddedFusionModel.save, got {path}: "
                f"{error}; save it again"
            ) from error
        if encoder is not None:
            model.check_encoder(encoder)
        return model

    def extra_repr(self) -> str:
        return f"objective={self.objective}, encoder={self.encoder_name!r}"


def _text_directions(objective: FusionObjective, encoder: FrozenCLIP) -> tuple[Tensor, Tensor]:
    roles = (objective.fused, objective.visible, objective.infrared)
    # One call for all texts: an encoder may drop its text tower after the first.
    embeddings = encoder.encode_text([text for texts in roles for text in texts])
    fused, visible, infrared = (
        F.normalize(texts.mean(0), dim=-1) for texts in embeddings.split([len(t) for t in roles])
    )
    if all(map(encoder.says_nothing, objective.fused)):
        # Where words mean nothing there is no direction, and then no gradient; any other vector
        # would pull at random.
        return torch.zeros_like(visible), torch.zeros_like(infrared)
    for name, embedding in (("visible", visible), ("infrared", infrared)):
        if torch.dist(fused, embedding) < functional.DIRECTION_EPS:
            raise ValueError(
                f"`fused` and `{name}` must differ for the encoder, got {objective.fused!r} and "
                f"{getattr(objective, name)!r}, to which {encoder.name!r} gives the same vector; "
                "word one of them differently"
            )
    return functional.direction(visible, fused), functional.direction(infrared, fused)


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """A checksum of all that a file says: flipped bits would pass for other directions."""
    content = json.dumps(metadata, sort_keys=True).encode() + safetensors.torch.save(tensors)
    return hashlib.sha256(content).hexdigest()


def _as_direction(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32 or tensor.ndim != 1:
        raise ValueError(f"a direction has dtype {tensor.dtype} and shape {tuple(tensor.shape)}")
    norm = tensor.norm().item()
    if norm != 0 and not abs(norm - 1) < 1e-3:  # NaN fails too
        raise ValueError("a direction is not a unit vector")
    return tensor


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # with the name that the caller knows
        reason = f"`path` cannot be written: {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from None
    finally:
        with suppress(OSError):  # it is usually gone, and so may its folder be
            temporary.unlink()
