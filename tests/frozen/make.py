"""Losses, terms and gradients of some forty calls, which no later version may change.

The files beside this one were written with version 0.2.0, whose `patch_scale` is a part of
`patch_geometry` since:

    python tests/frozen/make.py tests/frozen

Weights and images are drawn with fixed seeds. Gradients are kept at every third pixel, with the
norm of the whole.
"""

import re
import sys
import tempfile
import warnings
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.vgg import cfgs, make_layers

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    PatchGeometry,
    StructureLoss,
    VGGMaxFeatureLoss,
)

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1},
}
ENSEMBLE = FusionObjective(["a sharp image", "a photo with detail"], "a photo", ["a", "b"])
TEXTS = ["a dark image", ENSEMBLE]
BANK = {"dark": "a dark image", "mine": ENSEMBLE, "bright": "a bright image"}

# Options of the loss, and of `draw` and `measure`.
CALLS = {
    "grey": {},
    "rgb": {"channels": (3, 3, 3)},
    "grey fused, rgb visible": {"channels": (1, 3, 1)},
    "rgb fused, grey visible": {"channels": (3, 1, 3)},
    "large": {"size": (64, 60), "patch_geometry": PatchGeometry(scale=(0.8, 1.0))},
    "tall": {"size": (150, 47), "channels": (3, 3, 1), "num_patches": 3},
    "smallest": {"size": (16, 17), "min_patch_entropy": 5.0},
    "0 to 255": {"data_range": (0, 255)},
    "-1 to 1": {"data_range": (-1, 1), "channels": (3, 3, 1)},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "chunk of 1": {"patch_chunk": 1},
    "chunk of 5": {"patch_chunk": 5, "min_patch_entropy": None},
    "no chunks": {"patch_chunk": None},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "bf16 autocast": {"autocast": torch.bfloat16},
    "fp32 in autocast": {"autocast": torch.bfloat16, "precision": "fp32"},
    "text": {"objective": "a blurry dark image"},
    "ensemble": {"objective": ENSEMBLE, "reduction": "none"},
    "texts per image": {"objectives": TEXTS, "reduction": "none"},
    "by name": {"bank": ["mine", "bright"], "reduction": "none"},
    "by tensor": {"bank": torch.tensor([2, 0]), "patch_chunk": 3},
    "intensity": {"regularizer": IntensityGradientLoss(), "channels": (1, 3, 1)},
    "structure": {"regularizer": StructureLoss(window=5), "regularizer_weight": 3.0},
    "structure rgb": {"regularizer": StructureLoss(layout_weight=0.5), "channels": (3, 1, 1)},
    "vgg": {"regularizer": "vgg", "channels": (1, 3, 1)},
    "weights": {"direction_weight": 0.5, "patch_weight": 3.0, "similarity_weight": 0.25},
    "kept": {"patch_reduction": "kept", "min_patch_entropy": 5.9},
    "no filter": {"min_patch_entropy": None, "num_patches": 3},
    "none passes": {"min_patch_entropy": 8.0},
    "no patches": {"patch_weight": 0},
    "sources": {"sources": True, "channels": (1, 3, 1)},
    "eval": {"eval": True},
    "fused is visible": {"fused": "visible"},
    "fused outside": {"fused": "outside"},
    "global seed": {"generator": None},
    "second step": {"steps": 2},
    "double backward": {"patch_chunk": None, "twice": True, "num_patches": 2},
    "tiny": {"tiny": True, "size": (64, 64)},
    "tiny dark rgb": {"tiny": True, "objective": "a dark image", "channels": (3, 3, 1)},
}

# `tiny()` has had other weights since.
TINY_OF_0_2 = {
    "direction_weight": 3.2,
    "patch_weight": 1.0,
    "similarity_weight": 5.0,
    "regularizer": StructureLoss(window=11, flat_energy=0.12, layout_weight=2.0),
    "regularizer_weight": 2.4,
}


def make_encoder() -> FrozenCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**CLIP)
    for weight in model.parameters():  # how normal numbers are drawn differs between CPUs
        weight.data = weight.data.half().float()
    return FrozenCLIP(model, open_clip.tokenizer.SimpleTokenizer(context_length=24))


def make_vgg() -> VGGMaxFeatureLoss:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = make_layers(cfgs["E"]).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg19.pth"
        torch.save({f"features.{name}": weight for name, weight in state.items()}, path)
        return VGGMaxFeatureLoss(path)


def draw(size, channels) -> list[torch.Tensor]:
    """Fused, visible and infrared, of which some patches pass the filter."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, size[1]).expand(*size)
    noise = (torch.rand(2, count, *size, generator=generator) for count in channels)
    return [0.2 + 0.6 * ramp * part for part in noise]


def measure(
    encoders, *, size=(48, 56), channels=(1, 1, 1), tiny=False, fused="drawn", bank=None,
    objectives=None, sources=False, autocast=None, steps=1, twice=False, **options
) -> dict[str, torch.Tensor]:  # fmt: skip
    images = dict(zip(("fused", "visible", "infrared"), draw(size, channels), strict=True))
    if fused == "visible":
        images["fused"] = images["visible"].clone()
    if fused == "outside":
        images["fused"] = 3 * images["fused"] - 1
    low, high = options.get("data_range", (0, 1))
    images = {name: low + (high - low) * image for name, image in images.items()}
    images["fused"].requires_grad_()

    evaluating = options.pop("eval", False)
    if options.get("regularizer") == "vgg":
        options["regularizer"] = make_vgg()
    if tiny:
        options = TINY_OF_0_2 | options
    options = {"generator": torch.Generator().manual_seed(1), "num_patches": 6, **options}
    kind = LanguageDrivenFusionLoss.tiny if tiny else LanguageDrivenFusionLoss
    criterion = kind(encoder=encoders["tiny" if tiny else "drawn"], **options)
    criterion.train(not evaluating)
    if bank is not None:
        objectives = criterion.embed(BANK)[bank]
    if objectives is not None:
        images["objectives"] = objectives
    if sources:
        images["sources"] = criterion.embed_sources(images["visible"], images["infrared"])
    torch.manual_seed(2)
    for _ in range(steps):
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", autocast, enabled=bool(autocast)):
            terms = criterion.terms(**images)
        (gradient,) = torch.autograd.grad(
            terms.total.sum(), images["fused"], create_graph=twice, retain_graph=True
        )
    if twice:
        (gradient,) = torch.autograd.grad(gradient.square().sum(), images["fused"])
    return {
        "terms": torch.stack(terms).detach(),
        "gradient": gradient[..., ::3, ::3].contiguous(),
        "norm": gradient.norm(),
    }


def machine() -> str:
    """What rounding depends on."""
    cpu = re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{cpu and cpu[1]}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    encoders = {"drawn": make_encoder(), "tiny": FrozenCLIP.tiny()}
    results = {
        f"{call}/{name}": x
        for call, options in CALLS.items()
        for name, x in measure(encoders, **options).items()
    }
    folder = Path(sys.argv[1])
    save_file(results, folder / "values.safetensors", {"machine": machine()})
    EmbeddedFusionModel(ENSEMBLE, make_encoder()).save(folder / "one.safetensors")
    EmbeddedFusionModel(BANK, make_encoder()).save(folder / "bank.safetensors")
