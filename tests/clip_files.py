"""Small CLIPs as people have them in files, and what it means that one was read as it is."""

import warnings
from collections import OrderedDict

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG
from reference import MEAN, STD

RESNET = {
    **MODEL_CONFIG,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
}
IMAGES = torch.linspace(0, 1, 2 * 3 * 40 * 40).view(2, 3, 40, 40)
TEXTS = ["a", "b c"]
SENTENCES = ["a visible gray image", "an infrared image"]
TRANSFORMERS_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TRANSFORMERS_TEXT = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3,
    "max_position_embeddings": 24, "projection_dim": 24,
}  # fmt: skip


def assert_same_vectors(loaded, expected):
    assert {weight.dtype for weight in loaded.network.parameters()} == {torch.float32}
    assert torch.equal(loaded.encode_image(IMAGES), expected.encode_image(IMAGES))
    assert torch.equal(loaded.encode_text(TEXTS), expected.encode_text(TEXTS))


def refused(words, path, model_name="small"):
    pattern = rf"(?s)`pretrained`.*{path.name}.*{words}|`pretrained`.*{words}.*{path.name}"
    with pytest.raises(ValueError, match=pattern) as caught:
        FrozenCLIP.from_pretrained(model_name, path)
    return str(caught.value)


def openai_like(config=MODEL_CONFIG):
    """With OpenAI's activation, precision and the numbers that their archives carry."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = open_clip.CLIP(**config, quick_gelu=True)
    open_clip.convert_weights_to_lp(model)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    for name, number in {
        "input_resolution": size,
        "context_length": length,
        "vocab_size": 49408,
    }.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    return model.eval()


def save_archive(model, path, how="script", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files stay
        if how == "script":
            archive = torch.jit.script(model)
        else:
            size = model.visual.image_size[0]
            inputs = {
                "encode_image": (torch.rand(1, 3, size, size),),
                "encode_text": (torch.zeros(1, 24, dtype=torch.long),),
            }
            archive = torch.jit.trace_module(model.float(), inputs, check_trace=False).half()
        torch.jit.save(archive, str(path), **options)


def make_archives(folder):
    """Models with OpenAI's marks and the archives in `folder` that they are scripted to."""
    made = {}
    for name, config in {"ViT": MODEL_CONFIG, "RN": RESNET}.items():
        path = folder / f"{name}.pt"
        model = openai_like(config)
        save_archive(model, path)
        made[name] = (model.float(), path)
    return made


class Dangerous:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return type(self.trace).touch, (self.trace,)


def renamed(state, prefix):
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in state.items())


def transformers_clip(activation="quick_gelu", text_config=None):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={**TRANSFORMERS_TEXT, "hidden_act": activation, **(text_config or {})},
        vision_config={**TRANSFORMERS_VISION, "hidden_act": activation},
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
        for weight in model.parameters():  # theirs start so flat that any mistake is small
            weight.data.add_(torch.randn_like(weight), alpha=0.1)
    return model


def assert_equals_theirs(encoder, model, mean=MEAN, std=STD):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=24)(SENTENCES)
    with torch.no_grad():
        of_images = model.visual_projection(model.vision_model(normalised).pooler_output)
        of_texts = model.text_projection(model.text_model(tokens).pooler_output)
    for actual, theirs in (
        (encoder.encode_image(images), of_images),
        (encoder.encode_text(SENTENCES), of_texts),
    ):
        torch.testing.assert_close(actual, F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
    assert {weight.dtype for weight in encoder.network.parameters()} == {torch.float32}
