"""The picture of CLIP's space."""

from drawn import draw_pairs

from clip_fusion_loss import FrozenCLIP, FusionObjective
from parts.data.images import read_image
from parts.measuring.baselines import average
from parts.pages.embedding_space import save_embedding_space


def test_embedding_space(tmp_path):
    pairs = draw_pairs(3)
    visible, infrared = [p.visible for p in pairs], [p.infrared for p in pairs]
    fused = {"average $": [average(pair) for pair in pairs]}
    path = tmp_path / "space.png"
    save_embedding_space(FrozenCLIP.tiny(), FusionObjective(), visible, infrared, fused, path)
    picture = read_image(path)
    assert picture.shape[0] == 3
    assert picture.float().std() > 10
