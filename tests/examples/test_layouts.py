"""Which files of a folder become pairs, in the layouts that people have."""

import unicodedata

import pytest
from image_files import write

from parts.data.layouts import find_pairs, nothing_usable, what_was_taken


def names(root):
    return [pair.name for pair in find_pairs(root)[0]]


def found(root):
    """The pairs as paths below `root`: name, visible, infrared."""
    return [
        (name, *(path.relative_to(root).as_posix() for path in paths))
        for name, *paths in find_pairs(root)[0]
    ]


def reasons(root):
    _, skipped = find_pairs(root)
    return {item.path.relative_to(root).as_posix(): item.reason for item in skipped}


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


@pytest.mark.parametrize("infrared", ["ir", "Infrared", "THERMAL", "lwir"])
@pytest.mark.parametrize("visible", ["vi", "VIS", "visible", "rgb"])
def test_folder_names(tmp_path, infrared, visible):
    write(tmp_path / infrared / "a.png")
    write(tmp_path / visible / "a.png")
    (pair,), skipped = find_pairs(tmp_path)
    assert pair == ("a", tmp_path / visible / "a.png", tmp_path / infrared / "a.png")
    assert skipped == []


def test_split_folders_above_and_below_the_modality(tmp_path):
    for split in ("train", "test/night"):
        write(tmp_path / split / "ir" / "a.png")
        write(tmp_path / split / "vi" / "a.png")
        write(tmp_path / "Infrared" / split / "b.png")
        write(tmp_path / "Visible" / split / "b.png")
    assert names(tmp_path) == ["test/night/a", "test/night/b", "train/a", "train/b"]


def test_the_innermost_folder_decides(tmp_path):
    write(tmp_path / "visible" / "ir" / "a.png")
    write(tmp_path / "visible" / "vi" / "a.png")
    assert names(tmp_path / "visible") == ["a"]
    assert names(tmp_path) == ["visible/a"]


def test_extensions_may_differ(tmp_path):
    write(tmp_path / "ir" / "scene.1.bmp")
    write(tmp_path / "vi" / "scene.1.JPG")
    assert names(tmp_path) == ["scene.1"]


def test_equal_extensions_decide_between_files_of_one_name(tmp_path):
    for suffix in ("png", "bmp"):
        write(tmp_path / "ir" / f"a.{suffix}")
        write(tmp_path / "vi" / f"a.{suffix}")
    write(tmp_path / "vi" / "a.tif")
    assert names(tmp_path) == ["a_bmp", "a_png"]
    assert reasons(tmp_path) == {"vi/a.tif": "has no infrared partner"}


def test_two_folders_of_one_modality_are_not_mixed_up(tmp_path):
    write(tmp_path / "ir" / "a.png")
    write(tmp_path / "vi" / "a.png")
    write(tmp_path / "rgb" / "a.png")
    assert find_pairs(tmp_path)[0] == []
    reason = (
        "several images have this name: ir/a.png, rgb/a.png, vi/a.png; leave one of each modality"
    )
    assert reasons(tmp_path) == dict.fromkeys(("ir/a.png", "rgb/a.png", "vi/a.png"), reason)


def test_hidden_files_and_other_folders_do_not_count(tmp_path):
    for folder in ("ir", "vi"):
        write(tmp_path / folder / "a.png")
        write(tmp_path / folder / "._a.png")
        write(tmp_path / folder / ".thumbnails" / "b.png")
    write(tmp_path / "masks" / "a.png")
    (tmp_path / "README.txt").write_text("read me")
    assert names(tmp_path) == ["a"]
    assert reasons(tmp_path) == {}


def test_linked_folders_are_followed(tmp_path):
    write(tmp_path / "data" / "a.png")
    (tmp_path / "set").mkdir()
    for folder in ("ir", "vi"):
        (tmp_path / "set" / folder).symlink_to(tmp_path / "data")
    assert names(tmp_path / "set") == ["a"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"no folder .*nowhere"):
        find_pairs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("visible", "infrared", "name"),
    [
        ("street_vis.png", "street_ir.png", "street"),
        ("street-rgb.png", "street-thermal.png", "street"),
        ("VIS_street.png", "IR_street.png", "street"),
        ("VIS1.png", "IR1.png", "1"),
        ("a_rgb_2.jpg", "a_Infrared_2.png", "a_2"),
        ("scene/vi.png", "scene/ir.png", "scene"),
        ("vi.png", "ir.png", "pair"),
        ("vi/street_vis.png", "ir/street_ir.png", "street"),  # folder and name both tell
        ("vi/a_vis.png", "ir/a_vis.png", "a_vis"),  # equal names need no other rule
        ("set00/V000/visible/I1.jpg", "set00/V000/lwir/I1.jpg", "set00/V000/I1"),  # KAIST
        ("train/vi/00001D.png", "train/ir/00001D.png", "train/00001D"),  # MSRS, by day
        ("test/vi/00002N.png", "test/ir/00002N.png", "test/00002N"),  # and by night
        ("Vis/00001.png", "Ir/00001.png", "00001"),  # M3FD
        ("visible/train/1.jpg", "infrared/train/1.jpg", "train/1"),  # LLVIP
        ("crop_LR_visible/FLIR_1.jpg", "cropinfrared/FLIR_1.jpg", "FLIR_1"),  # RoadScene
        ("train/RGB/FLIR_1.jpg", "train/thermal_8_bit/FLIR_1.jpeg", "train/FLIR_1"),  # FLIR
        ("images_rgb_train/a.jpg", "images_thermal_train/a.jpg", "images_train/a"),  # FLIR, new
        ("Athena/house/VIS_m3_r.bmp", "Athena/house/IR_m3_g.bmp", "Athena/house"),  # TNO
        ("Triclobs/K/K_Vis.bmp", "Triclobs/K/K_IR.bmp", "Triclobs/K/K"),
    ],
)
def test_layouts_that_people_have(tmp_path, visible, infrared, name):
    touch(tmp_path, visible, infrared)
    assert found(tmp_path) == [(name, visible, infrared)]
    assert reasons(tmp_path) == {}


def test_words_within_words_tell_nothing(tmp_path):
    touch(tmp_path, "video_firs.png", "revisible.png", "ir_vi_overlay.png")
    assert found(tmp_path) == []
    assert reasons(tmp_path) == {}


def test_a_folder_called_like_a_modality_outdoes_words_in_other_names(tmp_path):
    touch(tmp_path, "ir/vis_spring/a.png", "vi/vis_spring/a.png", "vi/b_ir.png", "ir/b_ir.png")
    assert names(tmp_path) == ["b_ir", "vis_spring/a"]
    assert reasons(tmp_path) == {}


def test_a_folder_a_scene_holds_one_of_each(tmp_path):
    touch(tmp_path, "scene/VIS_a.bmp", "scene/IR_b.bmp", "scene/IR_c.bmp")
    touch(tmp_path, "vi/cold.png", "ir/hot.png", "VIS_x.png", "IR_y.png")
    assert found(tmp_path) == []
    assert set(reasons(tmp_path).values()) == {"has no visible partner", "has no infrared partner"}


def test_names_spelt_in_two_ways_are_one(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "straße_é") for form in ("NFC", "NFD"))
    assert composed != decomposed
    touch(tmp_path, f"vi/{composed}.png", f"ir/{decomposed}.png")
    assert names(tmp_path) == [composed]


def test_upper_and_lower_case(tmp_path):
    touch(tmp_path, "vi/Camp1.bmp", "ir/camp1.bmp")
    assert found(tmp_path) == [("Camp1", "vi/Camp1.bmp", "ir/camp1.bmp")]
    touch(tmp_path, "ir/Camp1.bmp", "vi/camp1.bmp")  # where both are, each has its own
    assert found(tmp_path) == [
        ("Camp1", "vi/Camp1.bmp", "ir/Camp1.bmp"),
        ("camp1", "vi/camp1.bmp", "ir/camp1.bmp"),
    ]


def test_a_third_copy_of_another_type_changes_no_name(tmp_path):
    touch(tmp_path, "ir/0.png", "vi/0.png", "rgb/0.jpg")
    assert found(tmp_path) == [("0", "vi/0.png", "ir/0.png")]
    assert reasons(tmp_path) == {"rgb/0.jpg": "has no infrared partner"}


def test_links_back_and_links_aside_add_nothing(tmp_path):
    touch(tmp_path, "set/train/vi/a.png", "set/train/ir/a.png")
    (tmp_path / "set" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "train" / "up").symlink_to(tmp_path)
    (tmp_path / "set" / "aside").symlink_to(tmp_path / "set" / "train")
    assert names(tmp_path / "set") == ["train/a"]
    explained = reasons(tmp_path / "set")
    assert explained["back"] == explained["train/up"] == "is a link to a folder that contains it"
    assert "once more" in explained["aside/vi/a.png"]


def test_no_name_is_given_twice(tmp_path):
    touch(tmp_path, "vi/a.png", "ir/a.png", "vi/a_vis.png", "ir/a_ir.png")
    assert names(tmp_path) == ["a"]
    assert "has its name" in reasons(tmp_path)["vi/a_vis.png"]


def test_what_was_taken_for_what(tmp_path):
    touch(tmp_path, "rgb/a.png", "lwir/a.png", "rgb/b.png", "lwir/b.png")
    line = what_was_taken(tmp_path, find_pairs(tmp_path)[0])
    assert line == f"pairs in {tmp_path}: 2, such as visible rgb/a.png and infrared lwir/a.png"


def test_a_refusal_names_an_example_of_each_side(tmp_path):
    touch(tmp_path, "rgb/a.png", "lwir/b.png", "lwir/c.png")
    message = str(nothing_usable(tmp_path, *find_pairs(tmp_path)))
    assert f"no usable pair of images in {tmp_path}" in message
    assert "taken for visible: 1 files, such as rgb/a.png" in message
    assert "taken for infrared: 2 files, such as lwir/b.png" in message
    assert "rgb/a.png: has no infrared partner" in message
    assert "DIR/ir/street.png" in message
