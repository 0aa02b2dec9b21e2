"""The tokenizer: from a folder, from the hub, or what is said when it is missing."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from clip_fusion_loss import FrozenCLIP
from conftest import MODEL_CONFIG, build_clip

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def unreachable(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def with_tokenizer_of_the_hub(monkeypatch):
    """As SigLIP's models are: the weights in a file, the tokenizer in a repository."""
    text = {**MODEL_CONFIG["text_cfg"], "hf_tokenizer_name": "timm/ViT-tiny-SigLIP"}
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "siglip", {**MODEL_CONFIG, "text_cfg": text}
    )
    return "siglip"


class TestTokenizer:
    @pytest.fixture
    def weights(self, tmp_path):
        path = tmp_path / "weights.pt"
        torch.save(build_clip().state_dict(), path)
        return path

    def test_offline_the_message_is_of_the_tokenizer(
        self, with_tokenizer_of_the_hub, weights, unreachable, tmp_path
    ):
        with pytest.raises(FileNotFoundError) as caught:
            FrozenCLIP.from_pretrained(with_tokenizer_of_the_hub, weights, cache_dir=tmp_path)
        message = str(caught.value)
        assert "weights are here, but its tokenizer is not" in message.replace(
            f"weights of 'siglip/{weights}'", "weights"
        )
        for words in ("tokenizer.json", "of timm/ViT-tiny-SigLIP", "tokenizer='FOLDER'"):
            assert words in message

    def test_folder_with_its_files(self, with_tokenizer_of_the_hub, weights, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = {
            word: number for number, word in enumerate(["<pad>", "<unk>", "a", "gray", "image"])
        }
        words_only = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        words_only.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words_only, pad_token="<pad>", unk_token="<unk>"
        ).save_pretrained(tmp_path / "tokenizer")
        encoder = FrozenCLIP.from_pretrained(
            with_tokenizer_of_the_hub, weights, tokenizer=tmp_path / "tokenizer"
        )
        tokens = torch.zeros(1, 24, dtype=torch.long)
        tokens[0, :3] = torch.tensor([2, 3, 4])
        expected = F.normalize(build_clip().eval().encode_text(tokens), dim=-1).detach()
        torch.testing.assert_close(encoder.encode_text("a gray image"), expected)

    def test_no_folder(self, weights, small_architecture, tmp_path):
        with pytest.raises(FileNotFoundError, match="`tokenizer`.*none"):
            FrozenCLIP.from_pretrained("small", weights, tokenizer=tmp_path / "none")
        with pytest.raises(TypeError, match="`tokenizer`"):
            FrozenCLIP.from_pretrained("small", weights, tokenizer=7)
