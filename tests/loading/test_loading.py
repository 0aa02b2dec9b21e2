"""The CLIP that comes with the package is whole, or refused."""

import random
import shutil

import pytest

from clip_fusion_loss import FrozenCLIP
from clip_fusion_loss.loading import EMBEDDED


class TestEmbeddedWeights:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        folder = tmp_path / "tiny_clip"
        shutil.copytree(EMBEDDED, folder)
        monkeypatch.setattr("clip_fusion_loss.loading.EMBEDDED", folder)
        return folder

    def refused(self):
        with pytest.raises(ValueError, match="is damaged.*install the package again"):
            FrozenCLIP.tiny()

    @pytest.mark.parametrize("name", [p.name for p in sorted(EMBEDDED.iterdir())])
    def test_missing_truncated_or_flipped(self, folder, name):
        content = (folder / name).read_bytes()
        chance = random.Random(0)
        (folder / name).unlink()
        self.refused()
        for _ in range(5):
            (folder / name).write_bytes(content[: chance.randrange(len(content))])
            if name != "SHA256SUMS":  # cut after a line it lists fewer files, all in order
                self.refused()
            flipped = bytearray(content)
            flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(7)
            (folder / name).write_bytes(flipped)
            self.refused()

    def test_whole_copies_load(self, folder):
        assert FrozenCLIP.tiny().name == "tiny"
