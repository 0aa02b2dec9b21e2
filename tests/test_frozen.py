"""An encoder alone as part of a module: nobody trains, saves or forgets it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from clip_fusion_loss import FrozenCLIP
from conftest import build_clip


class TestFrozen:
    def test_nothing_to_train_or_save(self, encoder):
        owner = nn.ModuleDict({"encoder": encoder})
        assert not owner.state_dict()
        assert not list(owner.parameters())

    def test_the_models_own_children_stay(self, clip_model, tokenizer):
        FrozenCLIP(clip_model, tokenizer)
        assert clip_model.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 24)

    def test_follows_its_owner(self, encoder):
        owner = nn.ModuleDict({"encoder": encoder})
        owner.to(torch.float64)
        assert encoder.network.conv1.weight.dtype == torch.float64
        owner.to("meta")
        assert encoder.network.conv1.weight.is_meta
        assert encoder.device.type == "meta"

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_deepcopy_and_pickle(self, encoder, clone):
        images = torch.rand(1, 1, 20, 20)
        copied = clone(encoder)
        assert torch.equal(copied.encode_image(images), encoder.encode_image(images))
        assert torch.equal(copied.encode_text("new"), encoder.encode_text("new"))
        assert copied.fingerprint == encoder.fingerprint
        encoder.half()
        assert copied.network.conv1.weight.dtype == torch.float32

    def test_fingerprint_tells_weights_apart(self, encoder, tokenizer):
        assert FrozenCLIP(build_clip(), tokenizer).fingerprint == encoder.fingerprint
        assert FrozenCLIP(build_clip(seed=1), tokenizer).fingerprint != encoder.fingerprint
