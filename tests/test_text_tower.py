"""FrozenCLIP: texts to vectors, and words that it does not know."""

import pytest
import torch

from clip_fusion_loss import FrozenCLIP
from conftest import build_clip
from reference import Reference


def reference(tokenizer):
    return Reference(build_clip(), tokenizer, ["a"], ["b"], ["c"])


class TestEncodeText:
    def test_equals_the_reference(self, clip_model, tokenizer):
        texts = ["a visible gray image", "an infrared image"]
        vectors = FrozenCLIP(clip_model, tokenizer).encode_text(texts)
        embed = reference(tokenizer).embed_texts
        expected = torch.stack([embed(tokenizer, [text]) for text in texts])
        torch.testing.assert_close(vectors.double(), expected, atol=1e-5, rtol=0)
        assert not vectors.requires_grad

    def test_single_text_and_repeated_texts(self, encoder):
        assert encoder.encode_text("one").shape == (1, 24)
        vectors = encoder.encode_text(["two", "one", "two"])
        assert torch.equal(vectors[0], vectors[2])
        assert torch.equal(vectors[1], encoder.encode_text("one")[0])

    def test_text_tower_can_be_dropped_after_use(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, keep_text=False)
        first = encoder.encode_text(["one", "two"])
        assert torch.equal(encoder.encode_text(["two"]), first[1:])
        with pytest.raises(RuntimeError, match=r"keep_text=False.*'three'.*EmbeddedFusionModel"):
            encoder.encode_text(["one", "three"])

    def test_long_text_is_refused_not_cut(self, encoder):
        encoder.encode_text("word " * 22)
        with pytest.raises(ValueError, match="at most 24 tokens"):
            encoder.encode_text("word " * 23)

    def test_unknown_words_are_named(self, clip_model, tokenizer, recwarn):
        known = frozenset({"a", "clear", "image"})
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary=known)
        encoder.encode_text("A clear image.")
        assert not recwarn
        with pytest.warns(UserWarning, match="'elephant', 'purple'"):
            encoder.encode_text("a purple elephant image")

    @pytest.mark.filterwarnings("ignore:the model")
    def test_unknown_words_are_left_out(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "image"})
        both = encoder.encode_text(["a Clear purple image \N{FIRE}", "a Clear image"])
        assert torch.equal(both[0], both[1])
        everything = FrozenCLIP(clip_model, tokenizer)
        both = everything.encode_text(["a clear purple image", "a clear image"])
        assert not torch.allclose(both[0], both[1])

    def test_what_says_nothing(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "the", "clear", "image"})
        assert encoder.says_nothing("a purple elephant dancing to the 7 \N{FIRE}")
        assert not encoder.says_nothing("A purple Image")
        assert not FrozenCLIP(clip_model, tokenizer).says_nothing("the a")

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("a clear image \N{FIRE}", "\N{FIRE}"),
            (
                "a clear image\N{WHITE MEDIUM STAR}\N{VARIATION SELECTOR-16}",
                "\N{WHITE MEDIUM STAR}",
            ),
            ("a clear \N{RIGHTWARDS ARROW} image", "\N{RIGHTWARDS ARROW}"),
            ("a clear+image", "\\+"),
            ("a_clear_image", "_"),
            ("a clear image @ 100 %", "%', '100', '@"),
            ("a clear \N{CJK UNIFIED IDEOGRAPH-56FE}", "\N{CJK UNIFIED IDEOGRAPH-56FE}"),
        ],
    )
    def test_symbols_are_named_like_words(self, clip_model, tokenizer, text, named):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"a", "clear", "image"})
        with pytest.warns(UserWarning, match=f"not trained on '{named}"):
            encoder.encode_text(text)

    def test_ordinary_punctuation_is_not(self, clip_model, tokenizer, recwarn):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary=["a", "clear", "image"])
        encoder.encode_text(
            "(A clear, clear-clear image: 'a image'; \u201ca image\u201d? a image!)"
        )
        assert not recwarn

    def test_float32_text_tower_whatever_the_image_tower_is(self, encoder):
        expected = encoder.encode_text("one")
        encoder._text_embeddings.clear()
        assert torch.equal(encoder.half().encode_text("one"), expected)
