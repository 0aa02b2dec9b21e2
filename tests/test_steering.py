"""An objective for each image of a batch: the value and gradient of one call for each."""

import copy
import pickle
import warnings
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import nn

from clip_fusion_loss import (
    EmbeddedFusionModel,
    FrozenCLIP,
    FusionObjective,
    IntensityGradientLoss,
    LanguageDrivenFusionLoss,
    steering,
)
from conftest import TORCH_VERSION, build_clip, draw_images, make_criterion, same_transforms
from reference import Reference

ENSEMBLE = FusionObjective(["a sharp image", "a photo with detail"], "a photo", ["a", "b"])
OBJECTIVES = ["a dark image", ENSEMBLE, "a bright image", "a dark image"]
NAMED = {"dark": "a dark image", "mine": ENSEMBLE, "bright": "a bright image"}

FORMS = {
    "texts and objectives": lambda criterion: OBJECTIVES,
    "embedded": lambda criterion: criterion.embed(OBJECTIVES),
    "by name": lambda criterion: criterion.embed(NAMED)[["dark", "mine", "bright", "dark"]],
    "by index": lambda criterion: criterion.embed(NAMED)[[0, 1, 2, 0]],
    "by tensor": lambda criterion: criterion.embed(NAMED)[torch.tensor([0, 1, 2, 0])],
    "without a loss": lambda criterion: EmbeddedFusionModel(OBJECTIVES, criterion.encoder),
}


def run(criterion, images, objectives):
    """Terms and gradient, with the same patches each time."""
    fused = images[0].clone().requires_grad_()
    criterion.eval()
    terms = criterion.terms(fused, *images[1:], objectives=objectives)
    terms.total.sum().backward()
    return [term.detach() for term in terms], fused.grad


def one_call_each(criterion, images):
    results = []
    for number, objective in enumerate(OBJECTIVES):
        criterion.set_objective(FusionObjective())
        criterion.set_objective(objective)
        results.append(run(criterion, [image[number : number + 1] for image in images], None))
    criterion.set_objective(FusionObjective())
    terms, gradients = zip(*results, strict=True)
    return [torch.cat(term) for term in zip(*terms, strict=True)], torch.cat(gradients)


@pytest.mark.parametrize("form", FORMS)
def test_equals_one_call_for_each_image(encoder, form):
    images = draw_images(batch=4)
    criterion = make_criterion(encoder, reduction="none", regularizer=IntensityGradientLoss())
    expected, gradient = one_call_each(criterion, images)
    terms, actual = run(criterion, images, FORMS[form](criterion))
    assert 0 < expected[-1].mean() < 1, "the filter must have something to decide"
    assert expected[1][0] != expected[1][2]
    for term, wanted in zip(terms, expected, strict=True):
        torch.testing.assert_close(term, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize(
    "options",
    [
        {"patch_chunk": None},
        {"patch_chunk": 5},
        {"patch_reduction": "kept", "patch_chunk": 3},
        {"min_patch_entropy": None},
        {"patch_weight": 0},
        {"reduction": "mean"},
        {"reduction": "sum"},
    ],
    ids=str,
)
def test_with_every_option(encoder, options):
    images = draw_images(batch=4, channels=(3, 1, 3))
    criterion = make_criterion(encoder, **{"reduction": "none", **options})
    criterion.reduction = "none"
    expected, gradient = one_call_each(criterion, images)
    criterion.reduction = reduction = options.get("reduction", "none")
    terms, actual = run(criterion, images, OBJECTIVES)
    reduce = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]
    torch.testing.assert_close(terms[0], reduce(expected[0]), rtol=1e-6, atol=1e-6)
    if reduction == "mean":
        gradient /= 4
    torch.testing.assert_close(actual, gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())


def test_terms_and_gradient_equal_the_reference(encoder, tokenizer):
    images = draw_images(batch=3, dtype=torch.float64)
    criterion = make_criterion(encoder, reduction="none")
    fused, *sources = (image.float() for image in images)
    fused.requires_grad_()
    terms = criterion.terms(fused, *sources, objectives=OBJECTIVES[:3])
    terms.total.sum().backward()

    images[0].requires_grad_()
    maps = same_transforms(criterion, images[0])
    for number, objective in enumerate(OBJECTIVES[:3]):
        texts = FusionObjective(objective) if isinstance(objective, str) else objective
        reference = Reference(build_clip(), tokenizer, texts.fused, texts.visible, texts.infrared)
        part = slice(number, number + 1)
        expected = reference.terms(*(image[part] for image in images), maps[part])
        (2 * expected.direction + 10 * expected.patch + 6 * expected.similarity).sum().backward()
        for name in ("direction", "patch", "similarity"):
            actual = getattr(terms, name)[part].double()
            torch.testing.assert_close(actual, getattr(expected, name), atol=1e-5, rtol=0)
    scale = images[0].grad.abs().max()
    assert (fused.grad.double() - images[0].grad).abs().max() < 1e-5 * scale


def test_texts_have_the_sources_in_force(encoder):
    mine = FusionObjective("a brain", visible="an MRI scan", infrared="a PET scan")
    criterion = make_criterion(encoder, objective=mine)
    embedded = criterion.embed(["a clear brain", "a dark brain"])
    assert embedded.objectives[1] == FusionObjective("a dark brain", mine.visible, mine.infrared)
    criterion.set_objective(FusionObjective())
    assert criterion.embed(["a dark brain"]).objectives == (FusionObjective("a dark brain"),)


def test_the_objective_in_force_stays(encoder):
    images = draw_images()
    criterion = make_criterion(encoder).eval()
    before = criterion(*images)
    assert criterion(*images, objectives=OBJECTIVES[:2]) != before
    assert criterion.objective == FusionObjective()
    assert criterion(*images, objectives=None) == before


class TestTexts:
    @pytest.fixture
    def embedded(self, encoder, monkeypatch):
        """The texts of each call of the text tower."""
        calls = []
        embed = encoder._embed

        def note(texts):
            calls.append(list(texts))
            return embed(texts)

        monkeypatch.setattr(encoder, "_embed", note)
        return calls

    def test_each_is_embedded_once_and_new_ones_together(self, encoder, embedded):
        criterion = make_criterion(encoder)
        embedded.clear()
        images = draw_images(batch=4)
        for _ in range(3):
            criterion(*images, objectives=OBJECTIVES)
        assert embedded == [
            ["a dark image", *ENSEMBLE.fused, *ENSEMBLE.visible, *ENSEMBLE.infrared,
             "a bright image"]
        ]  # fmt: skip
        criterion.set_objective("a dark image")
        criterion(*images, objectives=["a dark image", "a dim image", "a haze", "a dark image"])
        assert embedded[1:] == [["a dim image", "a haze"]]

    def test_more_than_are_remembered(self, encoder, embedded, monkeypatch):
        monkeypatch.setattr(steering, "REMEMBERED", 3)
        criterion = make_criterion(encoder).eval()
        texts = ["one", "two", "three", "four", "five"]
        expected = criterion.embed(texts)
        for start in (0, 1, 3, 0):
            actual = criterion.embed(texts[start : start + 2])
            direction = expected.visible_direction[start : start + 2]
            torch.testing.assert_close(actual.visible_direction, direction)
            assert len(criterion._seen._known) <= 3
        assert embedded[1:] == [texts]

    def test_unknown_words_are_named_once(self, clip_model, tokenizer):
        encoder = FrozenCLIP(
            clip_model,
            tokenizer,
            vocabulary={"a", "an", "visible", "gray", "infrared", "image", "dark"},
        )
        criterion = make_criterion(encoder, objective="a dark image")
        images = draw_images()
        with pytest.warns(UserWarning, match="'zebra'") as caught:
            criterion(*images, objectives=["a dark zebra", "a zebra"])
        assert caught[0].filename == __file__
        terms = criterion.terms(*images, objectives=["a dark zebra", "a zebra"])
        assert terms.total.isfinite()

    def test_unknown_words_have_no_effect(self, clip_model, tokenizer):
        encoder = FrozenCLIP(clip_model, tokenizer, vocabulary={"visible", "infrared", "dark"})
        mine = FusionObjective("dark", "visible", "infrared")
        criterion = make_criterion(encoder, objective=mine, reduction="none")
        with pytest.warns(UserWarning, match="'zebra'"):
            embedded = criterion.embed(["dark", "zebra"])
        terms = criterion.terms(*draw_images(), objectives=embedded)
        assert terms.direction[1] == 1
        assert terms.direction[0] != 1
        assert embedded.text_direction.norm(dim=1).tolist() == pytest.approx([1, 0])

    def test_banks_from_disk_need_no_text_tower(self, encoder, tmp_path):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder).eval()
        expected = criterion(*images, objectives=OBJECTIVES)
        criterion.embed(NAMED).save(tmp_path / "bank.safetensors")
        bank = EmbeddedFusionModel.load(tmp_path / "bank.safetensors", encoder)
        encoder._text_embeddings.clear()
        encoder.drop_text()
        criterion = make_criterion(encoder, objective=bank["dark"]).eval()
        chosen = bank[["dark", "mine", "bright", "dark"]]
        torch.testing.assert_close(criterion(*images, objectives=chosen), expected)
        with pytest.raises(RuntimeError, match="'something else'.*EmbeddedFusionModel"):
            criterion(*images[:3], objectives=["a dark image"] * 3 + ["something else"])


class TestWithinAProgram:
    def test_nothing_is_saved_or_trained(self, encoder):
        criterion = make_criterion(encoder)
        buffers = [name for name, _ in criterion.named_buffers()]
        criterion(*draw_images(batch=4), objectives=OBJECTIVES)
        owner = nn.ModuleDict({"criterion": criterion, "bank": criterion.embed(NAMED)})
        assert owner.state_dict() == {}
        assert not list(owner.parameters())
        assert [name for name, _ in criterion.named_buffers()] == buffers

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, encoder, clone):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder, generator=None).eval()
        bank = criterion.embed(NAMED)
        expected = criterion(*images, objectives=OBJECTIVES)
        copied, copied_bank = clone((criterion, bank))
        assert len(copied._seen._known) == 0
        assert copied(*images, objectives=OBJECTIVES) == expected
        chosen = copied_bank[["dark", "mine", "bright", "dark"]]
        assert copied(*images, objectives=chosen) == expected
        assert clone(chosen).objectives == chosen.objectives

    def test_what_is_seen_in_inference_mode_serves_in_training(self, encoder):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder, reduction="none")
        expected = run(copy.deepcopy(criterion), images, OBJECTIVES)
        with torch.inference_mode():
            criterion(*images, objectives=OBJECTIVES)
            chosen = criterion.embed(NAMED)[torch.tensor([0, 1, 2, 0])]
        for objectives in (OBJECTIVES, chosen):
            torch.testing.assert_close(run(criterion, images, objectives), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast(self, encoder, dtype):
        images = draw_images(batch=4)
        criterion = make_criterion(encoder)
        expected, _ = run(criterion, images, OBJECTIVES)
        with torch.autocast("cpu", dtype):
            chosen = criterion.embed(NAMED)[[0, 1, 2, 0]]
            assert chosen.text_direction.dtype == torch.float32
            terms, gradient = run(criterion, images, chosen)
        assert gradient.isfinite().all()
        torch.testing.assert_close(terms[0], expected[0], rtol=0.02, atol=0)

    def test_transforms(self, encoder):
        fused, *sources = draw_images(batch=4)
        criterion = make_criterion(encoder).eval()
        _, expected = run(criterion, (fused, *sources), OBJECTIVES)
        actual = torch.func.grad(lambda f: criterion(f, *sources, objectives=OBJECTIVES))(fused)
        torch.testing.assert_close(actual, expected)

    @pytest.mark.skipif(
        TORCH_VERSION < (2, 5), reason="compiling `bank[tensor]` is an error in torch 2.4"
    )
    @pytest.mark.filterwarnings("ignore:The .grad attribute")
    def test_compiled_step(self, encoder):
        """Other texts, no other graphs."""
        torch.manual_seed(0)
        network = nn.Conv2d(2 + 24, 1, 1)
        _, visible, infrared = draw_images(batch=4)
        criterion = make_criterion(encoder).eval()
        bank = criterion.embed(NAMED)

        def step(index):
            vector = bank.text_direction[index][:, :, None, None].expand(-1, -1, 40, 48)
            fused = network(torch.cat([visible, infrared, vector], 1)).sigmoid()
            return criterion(fused, visible, infrared, objectives=bank[index])

        compiled = torch.compile(step, backend="eager")
        indices = [torch.tensor(rows) for rows in ([0, 1, 2, 0], [2, 2, 1, 0], [1, 1, 1, 1])]
        losses = [compiled(indices[0])]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        losses += [compiled(index) for index in indices[1:]]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        for loss, index in zip(losses, indices, strict=True):
            torch.testing.assert_close(loss, step(index))
            assert all(slope.any() for slope in torch.autograd.grad(loss, network.parameters()))

    def test_the_host_waits_for_nothing_more(self, encoder, monkeypatch):
        criterion = make_criterion(encoder)
        images = draw_images(batch=4)
        chosen = criterion.embed(NAMED)[[0, 1, 2, 0]]
        criterion(*images, objectives=OBJECTIVES)
        reads = []
        for name in ("item", "__bool__", "__int__", "__float__", "nonzero", "tolist", "cpu"):
            original = getattr(torch.Tensor, name)

            def read(tensor, *arguments, name=name, original=original):
                if tensor.shape != (6,):  # the maps are drawn on the host
                    reads.append(name)
                return original(tensor, *arguments)

            monkeypatch.setattr(torch.Tensor, name, read)
        for objectives in (OBJECTIVES, chosen):
            reads.clear()
            criterion(*images, objectives=objectives)
            assert reads == ["nonzero"]

    @pytest.mark.slow
    def test_distributed(self, tmp_path):
        """Two processes with other texts each have the gradient of one with all of them."""
        torch.multiprocessing.spawn(train_a_part, (tmp_path,), nprocs=2)
        ranks = [torch.load(tmp_path / f"result{rank}", weights_only=True) for rank in range(2)]
        trainer, sources = Trainer(), draw_images(batch=4)[1:]
        trainer(*sources, TEXTS).backward()
        for rank in ranks:
            for actual, parameter in zip(rank, trainer.parameters(), strict=True):
                torch.testing.assert_close(actual, parameter.grad, rtol=1e-4, atol=1e-6)


TEXTS = ["a dark image", "a bright image", "a haze", "a sharp image"]


class Trainer(nn.Module):
    """A network beside its loss, without random patches, which differ between processes."""

    def __init__(self):
        super().__init__()
        import open_clip

        torch.manual_seed(0)
        tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=24)
        self.criterion = make_criterion(FrozenCLIP(build_clip(), tokenizer), patch_weight=0.0)
        self.network = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, visible, infrared, objectives):
        fused = self.network(torch.cat([visible, infrared], 1)).sigmoid()
        return self.criterion(fused, visible, infrared, objectives=objectives)


def train_a_part(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch about itself
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    trainer = nn.parallel.DistributedDataParallel(Trainer())
    sources = (source.chunk(2)[rank] for source in draw_images(batch=4)[1:])
    # The second step sends the buffers of rank 0 to rank 1, whose texts are others.
    for _ in range(2):
        trainer.zero_grad()
        loss = trainer(*(sources := list(sources)), TEXTS[2 * rank : 2 * rank + 2])
        loss.backward()
    torch.save([parameter.grad for parameter in trainer.parameters()], folder / f"result{rank}")
    dist.destroy_process_group()


def other_bank(here):
    tokenizer = here.encoder._text._tokenizer
    other = FrozenCLIP(build_clip(seed=1), tokenizer, name="other")
    return EmbeddedFusionModel(["a dark image", "a haze"], other)


class TestWrongCalls:
    CASES: ClassVar = {
        "too few texts": (lambda c: ["a dark image"], ValueError, "images, 2, got 1;"),
        "too many texts": (lambda c: OBJECTIVES, ValueError, "images, 2, got 4;"),
        "no text": (lambda c: [], ValueError, "images, 2, got 0;"),
        "one text": (lambda c: "ab", TypeError, "got 'ab'; set one for all images with"),
        "one objective": (lambda c: FusionObjective(), TypeError, "criterion.set_objective"),
        "a mapping": (lambda c: {"a": "b", "c": "d"}, TypeError, r"bank\[names\]"),
        "indices": (lambda c: torch.tensor([0, 1]), TypeError, r"bank\[indices\]"),
        "a number": (lambda c: 3, TypeError, "must be a sequence of texts"),
        "a number among them": (lambda c: ["a dark image", 3], TypeError, "got 3 among them"),
        "an ensemble as a list": (lambda c: ["a", ["b", "c"]], TypeError, r"FusionObjective\(te"),
        "an empty text": (lambda c: ["a dark image", ""], ValueError, "no empty one"),
        "a file": (lambda c: ["a", "b.safetensors"], ValueError, "seems to be a file"),
        "a source's text": (lambda c: ["a", "An INFRARED image"], ValueError, "same vector"),
        "another length": (lambda c: c.embed(NAMED), ValueError, "images, 2, got 3;"),
        "one embedded": (lambda c: c.fusion_model, ValueError, "images, 2, got 1;"),
        "another encoder": (other_bank, ValueError, "'other', got 'custom'"),
        "elsewhere": (
            lambda c: c.embed(["a", "b"]).to("meta"), ValueError, r"got meta; .*\.to\('cpu'\)"
        ),
    }  # fmt: skip

    @pytest.mark.parametrize("case", CASES)
    def test_of_the_loss(self, encoder, case):
        make, error, words = self.CASES[case]
        criterion = make_criterion(encoder).eval()
        expected = criterion(*draw_images())
        with pytest.raises(error, match=words):
            criterion(*draw_images(), objectives=make(criterion))
        assert criterion(*draw_images()) == expected

    @pytest.mark.parametrize("wrong", [{}, [], {1: "a"}, "a", 3, None, {"a": 3}, {"a"}])
    def test_of_embed(self, encoder, wrong):
        with pytest.raises((TypeError, ValueError), match="`objectives` must"):
            make_criterion(encoder).embed(wrong)

    def test_banks_are_not_in_force(self, encoder):
        criterion = make_criterion(encoder)
        before = criterion.fusion_model
        with pytest.raises(ValueError, match=r"must be a single one, .* 3; .*bank\[name\]"):
            criterion.set_objective(criterion.embed(NAMED))
        with pytest.raises(ValueError, match="must be a single one"):
            LanguageDrivenFusionLoss(criterion.embed(NAMED), encoder=encoder)
        assert criterion.fusion_model is before
        criterion.set_objective(criterion.embed(NAMED)["mine"])
        assert criterion.objective == ENSEMBLE
