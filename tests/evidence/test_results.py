"""The results: a brief run writes everything, a second one trains nothing, figures are right."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from clip_fusion_loss import FusionObjective
from evidence import comparing, page, pictures, regions, results, tables, trials
from evidence.tables import BLENDS, MIXED, NO_LANGUAGE, NOT_BRIGHT, POOR, SENTENCES, WORDINGS
from evidence.trials import PAPER
from pairs import Pair

DOCS = Path(__file__).parents[2] / "docs"
MEASURES = dict.fromkeys((*comparing.EIGHT, "invented", "mean"), 1.0)


def save_pairs(folder, count, seed):
    """Noise on a ramp, as RoadScene or TNO would lie there."""
    random = np.random.default_rng(seed)
    for kind in ("ir", "vi"):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            values = random.integers(0, 130, (48, 56)) + np.linspace(0, 120, 56)
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The options of a run that is over, as the program takes them."""
    root = tmp_path_factory.mktemp("results")
    road = save_pairs(root / "roadscene", 4, 0)
    tno = save_pairs(root / "tno", 2, 1)
    for method in ("set/Mean", "set-clamp/Mean", "set/LD-Lite"):
        (root / "peers" / method).mkdir(parents=True)
        for number in range(4):
            shutil.copy(road / "vi" / f"{number}.png", root / "peers" / method)
    arguments = [f"--pairs={road}", f"--show={tno}", f"--peers={root / 'peers'}", "--steps=1"]
    arguments += ["--seeds=1", "--max-pairs=2", f"--out={root / 'out'}", f"--docs={root / 'docs'}"]
    opening = "# Name\n\nOn one side.\n\n"
    (root / "README.md").write_text(
        f"{opening}On 25 RoadScene pairs, {{{{seeds}}}}:\n\n{page.README_END}. More.\n"
    )
    results.main(arguments)
    text = (root / "README.md").read_text()
    figures = page.readme(tables.load(root / "docs" / "evidence"))
    assert text == f"{opening}{figures}. More.\n"
    return arguments, root


def test_a_run_writes_page_tables_and_pictures(run):
    _, root = run
    text = (root / "docs" / "results.md").read_text()
    assert text == page.text(tables.load(root / "docs" / "evidence"))
    assert text.count("\n## ") == 6
    assert "LD-Lite" in text
    for path in (root / "docs" / "images").iterdir():
        with Image.open(path) as picture:
            assert picture.width > 500
        assert f"(images/{path.name})" in text or path.name == pictures.FRONT_PICTURE
    assert len(list((root / "docs" / "images").iterdir())) == 5
    assert sorted(path.stem for path in (root / "docs" / "evidence").iterdir()) == sorted(
        tables.FILES
    )


def test_a_second_run_trains_nothing_and_writes_the_same(run, monkeypatch):
    arguments, root = run
    before = {path: path.read_bytes() for path in (root / "docs" / "evidence").iterdir()}
    times = {path: path.stat().st_mtime_ns for path in root.glob("out/*/result.json")}
    others = 5  # no language, twice fidelity, two for many sentences
    assert len(times) == len(SENTENCES) + len(WORDINGS) + others
    results.main(arguments)
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in root.glob("out/*/result.json")} == times
    page_before = (root / "docs" / "results.md").read_text()
    (root / "docs" / "results.md").unlink()
    results.main(["--only-page", "--docs", str(root / "docs")])
    assert (root / "docs" / "results.md").read_text() == page_before


def test_measures_are_those_of_the_images_on_disk(run):
    """EN, and the change of the brightness, from the files that the trainings have fused."""
    arguments, root = run
    options = results.parse(arguments)
    single, _ = results.trials_of(options)
    bench = trials.Bench("tiny", options.pairs, options.show, 2, options.out)
    rows = tables.load(root / "docs" / "evidence")["measures"]
    for name in (NO_LANGUAGE, "a dark image"):
        images = bench.images(single[name][0], "roadscene")
        [row] = tables.chosen(rows, set="roadscene", group="ours", name=name)
        assert len(images) == 2
        assert row["mean"] == pytest.approx(torch.stack(images).float().mean().item(), rel=1e-4)
        entropies = [metrics.entropy(image[0].numpy()) for image in images]
        assert row["EN"] == pytest.approx(np.mean(entropies), rel=1e-4)
    [row] = tables.chosen(rows, set="roadscene", group="published", name="LD-Lite")
    assert row["MI"] > 5  # the visible image itself, of which it knows all
    groups = [row["group"] for row in rows if row["name"] == "Mean"]
    assert sorted(set(groups)) == ["published", "published, stretched"]


@pytest.mark.slow
def test_trials_in_processes_are_those_in_this_one(run, tmp_path):
    options = results.parse(run[0])
    single, _ = results.trials_of(options)
    kept = trials.Bench("tiny", options.pairs, options.show, 2, options.out)
    other = trials.Bench("tiny", options.pairs, options.show, 2, tmp_path)
    [trial] = single[NO_LANGUAGE]
    other.run([trial], 2)
    assert other.result(trial)["tno"] == kept.result(trial)["tno"]


def test_settings_are_read_back_from_the_loss(run):
    single, [many] = results.trials_of(results.parse(run[0]))
    tiny = results.build_criterion("tiny")
    bench = trials.Bench("tiny", Path(), Path(), 1, Path())
    built = trials.build_criterion(bench, single[PAPER][0])
    for name in ("direction_weight", "patch_weight", "num_patches", "patch_geometry"):
        assert getattr(built, name) == getattr(tiny, name), name
    assert (
        vars(built.regularizer).items()
        >= {name: value for name, value in vars(tiny.regularizer).items() if name[0] != "_"}.items()
    )
    silent = trials.build_criterion(bench, single[NO_LANGUAGE][0])
    assert silent.direction_weight == silent.patch_weight == 0
    assert silent.similarity_weight == tiny.similarity_weight
    closer = trials.build_criterion(bench, single[page.FIDELITY_PAPER][0])
    assert closer.regularizer_weight == trials.FIDELITY["regularizer_weight"]
    assert many.prompts == tuple(SENTENCES)
    opposite = trials.build_criterion(bench, single[NOT_BRIGHT.title][0])
    assert opposite.objective == FusionObjective("a sharp image", opposite="a bright image")
    mixed = trials.build_criterion(bench, single[MIXED.title][0]).fusion_model
    sharp, bright = tiny.embed(["a sharp image", "a bright image"]).visible_direction
    expected = torch.nn.functional.normalize(sharp + 0.5 * bright, dim=0)
    torch.testing.assert_close(
        torch.nn.functional.normalize(mixed.visible_direction, dim=0), expected
    )


def test_page_and_readme_show_the_figures_beside_them():
    figures = tables.load(DOCS / "evidence")
    assert (DOCS / "results.md").read_text() == page.text(figures)
    assert page.readme(figures) in (DOCS.parent / "README.md").read_text()


# Counts and comparisons, on made-up figures


def make_tables(paper, dark=60.0):
    """Two seeds; without language every measure is 1, and the mean grey level 100."""

    def row(name, seed, group="ours", **values):
        base = {"set": "roadscene", "group": group, "name": name, "seed": seed}
        return base | MEASURES | {"mean": 100.0} | values

    rows = []
    for seed in range(2):
        rows += [row(NO_LANGUAGE, seed), row(PAPER, seed, **paper[seed])]
        rows.append(row("a dark image", seed, mean=dark))
        rows += [row(name, seed) for name in SENTENCES if name not in (PAPER, "a dark image")]
        rows += [row(name, seed, "filter") for name in comparing.FILTERS]
    rows.append(row("LD-Lite", "", "published", EN=2.0))
    told = [(text, 100.0) for text in SENTENCES] + [(s.unseen, 100.0) for s in SENTENCES.values()]
    told = dict(told) | {"a dark image": 68.0, "a dark photo": 80.0}
    steps = [[1, 2, 3, 4, 5, 6, 7], [1, 3, 2, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]]
    dark_to_bright, _ = BLENDS
    blends = [
        {"from": ends[0], "to": ends[1], **{f"step {n}": level for n, level in enumerate(levels)}}
        for ends in BLENDS
        for levels in (steps if ends == dark_to_bright else steps[:1])
    ]
    order = [(1, 2, 3), (1, 3, 2), (2, 1, 3)]
    return {
        "run": [{"name": n, "value": v} for n, v in
                {"test set": "roadscene", "second set": "tno", "seeds": 2}.items()],
        "measures": rows,
        "brightness": [dict(zip(("dark", "neither", "bright"), o, strict=True)) | {
            "set": "roadscene"} for o in order],
        "one_network": [{"sentence": t, "seed": 0, "mean": m, "SD": 1.0, "AG": 1.0}
                        for t, m in told.items()],
        "blends": blends,
        "regions": [
            {"trained on": title, "seed": seed, **vars(case), "images": 9,
             "told, inside": inside, "sentence, inside": 40.0, "elsewhere, inside": 90.0,
             "told, outside": 70.0, "sentence, outside": 40.0, "elsewhere, outside": 80.0}
            for title in ("regions", "whole images")
            for case in regions.CASES for seed, inside in enumerate((50.0, 60.0))
        ],
    }  # fmt: skip


PAPER_ROWS = (
    {"AG": 1.6, "SD": 1.2, "Qabf": 1.0, "SSIM": 0.64, "invented": 0.04},
    {"AG": 1.4, "SD": 1.3, "Qabf": 0.9, "SSIM": 0.66, "invented": 0.05},
)


def test_targets_are_counted_by_seed():
    made = page.Results(make_tables(PAPER_ROWS))
    assert list(made.reached(PAPER).values()) == [1, 1, 1, 1, 2]
    assert made.reached("a dark image") == {"mean -35 %": 2}
    assert made.reached("a bright image") == {"mean +15 %": 0}
    assert made.reached("a sharp image") == {}
    assert made.effect(PAPER, "AG") == "+50 %"
    assert made.effect("a bright image", "AG") == "0 %"
    assert made.wins("CLAHE") == [2, 2]  # AG and SD; SSIM and Qabf are not ahead
    assert made.in_order(0) == "1 of 3"


def test_what_is_better_with_every_seed():
    tables_ = make_tables(PAPER_ROWS)
    alone = tables.chosen(tables_["measures"], name=PAPER)
    told = [
        {**row, "name": POOR.title, "mean": 90.0, "AG": gradient, "Qabf": edges, "invented": 0.03}
        for row, gradient, edges in zip(alone, (1.7, 1.5), (1.1, 0.8), strict=True)
    ]
    both = [*alone, *told]
    tables_["measures"] += [*told, *({**row, "set": "tno"} for row in both)]
    made = page.Results(tables_)
    assert made.moved(POOR) == (["AG", "invented"], [])
    assert made.effect_beside(POOR, "mean") == "-10 %"
    said = "in 2 on RoadScene and worse in none, in"
    last = "of nine measures. The quickstart"
    assert f"{said} 2 on TNO and worse in none, {last} uses it." in page.verdict(made)
    tables_["measures"][-1]["invented"] = tables_["measures"][-2]["invented"] = 0.9
    assert made.moved(POOR, 1) == (["AG"], ["invented"])
    assert f"{said} 1 on TNO and worse in invented, {last} does not use it." in page.verdict(made)


def test_shares_and_blends():
    made = page.Results(make_tables(PAPER_ROWS))
    dark = made.shares()["a dark image"]
    assert dark["share"] == pytest.approx(32 / 40)
    assert dark["share, unseen"] == pytest.approx(20 / 40)
    assert "share" not in made.shares()["a bright image"]  # it changes nothing on its own
    first, second = made.orders().values()
    assert first == pytest.approx([1, 1 - 6 * 2 / (7 * 48), -1])
    assert second == pytest.approx([1])
    assert comparing.rises([2.0, 2.0, 2.0]) == 0
    assert page.counted([0.8, None, 0.7], 0.8) == "1 of 3"


def test_regions():
    made = page.Results(make_tables(PAPER_ROWS))
    shares = (0.8 + 0.6) / 2, 0.25
    found = made.regions("regions")
    assert all(each == (*map(pytest.approx, shares), 0) for each in found.values())
    assert made.span("regions") == 50


def test_levels_of_regions_are_those_of_their_pixels():
    """A network that does as it is told: each label has its own brightness and texture."""
    size = (60, 80)
    infrared = torch.full((1, *size), 90, dtype=torch.uint8)
    infrared[:, 20:40, 30:40] = 250
    pair = Pair("0", torch.zeros(1, *size, dtype=torch.uint8), infrared)
    levels = dict(zip(regions.SENTENCES, (60, 10, 200, 120), strict=True))
    stripes = torch.arange(size[1]).expand(1, *size) % 4 < 2

    def fuse(pair, texts, labels):
        labels = torch.zeros(1, *size, dtype=torch.int64) if labels is None else labels
        told = torch.tensor([levels[text] for text in texts])[labels]
        return (told + stripes * told // 5).byte()

    rows = regions.measured(fuse, [pair, pair])
    assert [row["images"] for row in rows] == [2, 2, 2]
    for row in rows[:2]:
        assert (regions.reached([row], "inside"), regions.reached([row], "outside")) == (1, 0)
        assert row["told, inside"] == row["sentence, inside"] == pytest.approx(11, rel=0.01)
        assert row["told, outside"] == row["elsewhere, outside"] == pytest.approx(220, rel=0.02)
    # Central differences of stripes of 24 and 12 levels, nearly none at the border; and a seam.
    assert rows[2]["sentence, inside"] == pytest.approx(12 / 2**0.5, rel=0.03)
    assert rows[2]["elsewhere, outside"] == pytest.approx(6 / 2**0.5)
    assert rows[2]["sentence, inside"] < rows[2]["told, inside"] < 1.1 * 12 / 2**0.5
    assert regions.labels_of(regions.HALF, pair, 0)[0, :, :40].all()
    assert not regions.labels_of(regions.HALF, pair, 1)[0, :, :40].any()
    flat = Pair("1", pair.visible, torch.full_like(infrared, 90))
    assert [row["region"] for row in regions.measured(fuse, [flat])] == [regions.HALF]


def test_rank_among_published_methods():
    made = page.Results(make_tables(PAPER_ROWS))
    # Behind in EN, equal in SF, MI and SCD, ahead in SD, AG; Qabf and SSIM are lower.
    rank, ahead = made.standing(PAPER, 0)
    assert rank == pytest.approx(1 + 3 / 8)
    assert ahead == 0
    row, better = dict(MEASURES), dict.fromkeys(MEASURES, 2.0)
    assert comparing.rank(better, [row, row]) == 1
    assert comparing.rank(row, [better, better]) == 3
    assert comparing.ahead(better, row) == 8
    assert comparing.ahead(row | {"AG": 1.001}, row, margin=0.002) == 0


@pytest.mark.parametrize("name", comparing.FILTERS)
def test_filters_reach_the_gradient_that_is_asked_for(name):
    random = np.random.default_rng(0)
    values = random.integers(80, 140, (2, 1, 64, 64), dtype=np.uint8)
    images = list(torch.from_numpy(values))
    gradients = [metrics.average_gradient(image[0].numpy()) for image in images]
    target = 1.2 * np.mean(gradients)
    filtered = comparing.matched(comparing.FILTERS[name], images, target)
    reached = np.mean([metrics.average_gradient(image[0].numpy()) for image in filtered])
    assert reached == pytest.approx(target, rel=0.02)
    same = comparing.matched(comparing.FILTERS[name], images, 0.5 * target)
    assert all(torch.equal(*both) for both in zip(same, images, strict=True))


def test_tables_come_back_as_they_were_saved(tmp_path):
    rows = [{"name": 'a "dark" image, so', "seed": 0, "AG": 1.5}]
    tables.save(dict.fromkeys(tables.FILES, rows), tmp_path)
    assert tables.load(tmp_path) == dict.fromkeys(tables.FILES, rows)
