"""A user's own folder of pictures: its layouts, its cache, and what a user reads where it does not serve."""

import os
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from maml_l2l.config import Data
from maml_l2l.data import folder as folder_data
from maml_l2l.data.class_folders import query_pictures, support_pictures
from maml_l2l.data.folder import cache_folder, load_folder
from maml_l2l.data.omniglot import load_omniglot
from maml_l2l.data.pictures import picture_pixels, read_picture
from maml_l2l.data.sources import class_split
from maml_l2l.system.errors import UserError
from maml_l2l.tasks.stream import TaskStream

CLASSES = ("ant", "bee", "cat", "dog")


def picture(seed, side=10):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def fill(root, classes, pictures=2):
    """Write `pictures` pictures of each class, all different."""
    for number, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(pictures):
            picture(100 * number + index).save(folder / f"{index}.png")
    return root


def settings(root, **keys):
    return Data(name="folder", root=str(root), **({"image_size": 10} | keys))


def test_pictures_are_sorted_by_class_and_decoded_as_one_alone_is(tmp_path):
    fill(tmp_path, CLASSES)
    data = settings(tmp_path)
    images = load_folder(data)
    assert images.class_names == CLASSES
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert images.pixels.shape == (8, 3, 10, 10) and images.pixels.dtype == torch.uint8
    expected = [picture_pixels(picture(100 * number + index), data) for number in range(4) for index in range(2)]
    assert (images.pixels.numpy() == np.stack(expected)).all()


def test_nested_leaves_are_classes_and_links_are_followed(tmp_path):
    fill(tmp_path / "real", ["Greek/alpha", "Greek/beta", "Latin/a"])
    (tmp_path / "linked").mkdir()
    for name in ("Greek", "Latin"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    for root in ("real", "linked"):
        assert load_folder(settings(tmp_path / root)).class_names == ("Greek/alpha", "Greek/beta", "Latin/a")


def test_hidden_files_and_notes_are_passed_over(tmp_path):
    fill(tmp_path, CLASSES)
    for name in ("ant/.hidden.png", "ant/Thumbs.db", "ant/labels.csv", ".git/config", "README.md", "dataset.zip"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no picture")
    assert load_folder(settings(tmp_path)).class_sizes() == [2, 2, 2, 2]


def test_classes_are_split_by_fractions_and_seed_and_nothing_else(tmp_path):
    images = load_folder(settings(fill(tmp_path, [f"class{number:02d}" for number in range(20)], pictures=1)))

    def split(**keys):
        return class_split(settings(tmp_path, **keys), images)

    usual = split()
    assert [len(usual[part]) for part in ("train", "val", "test")] == [12, 4, 4]
    assert sorted(name for part in usual.values() for name in part) == list(images.class_names)
    assert usual == split() != split(split_seed=1)
    other = split(val_fraction=0.1, test_fraction=0.25)
    assert [len(other[part]) for part in ("train", "val", "test")] == [13, 2, 5]
    # Written down once, so that no later version tests on what an earlier one trained on.
    assert usual["test"] == ["class00", "class06", "class10", "class19"]


def test_a_folder_that_comes_split_keeps_its_split(tmp_path):
    fill(tmp_path, ["train/ant", "train/dog", "val/bee", "test/x/cat"])
    images = load_folder(settings(tmp_path))
    assert images.class_names == ("ant", "bee", "dog", "x/cat")
    expected = {"train": ["ant", "dog"], "val": ["bee"], "test": ["x/cat"]}
    assert class_split(settings(tmp_path, split_seed=7), images) == expected


def test_a_missing_part_for_validation_is_carved_from_the_training_classes(tmp_path):
    fill(tmp_path, [*(f"train/class{number}" for number in range(10)), "test/cat"])
    split = class_split(settings(tmp_path, val_fraction=0.3), load_folder(settings(tmp_path)))
    assert [len(split[part]) for part in ("train", "val", "test")] == [7, 3, 1]
    assert sorted(split["train"] + split["val"]) == [f"class{number}" for number in range(10)]


def test_train_beside_other_classes_is_a_class(tmp_path):
    fill(tmp_path, ["train", "plane", "test"])
    assert load_folder(settings(tmp_path)).class_names == ("plane", "test", "train")


def without_decoding(monkeypatch):
    monkeypatch.setattr(folder_data, "read_picture", lambda path, data: pytest.fail(f"decoded {path} again"))


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    first = load_folder(settings(fill(tmp_path, CLASSES)))
    without_decoding(monkeypatch)
    second = load_folder(settings(tmp_path, split_seed=3, rotate=True))
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("key", [{"channels": 1}, {"image_size": 9}, {"invert": True}, {"fit": "pad"}])
def test_a_changed_key_is_decoded_anew(tmp_path, key):
    picture(0).resize((20, 10)).save(fill(tmp_path, CLASSES) / "ant" / "0.png")
    first, second = load_folder(settings(tmp_path)), load_folder(settings(tmp_path, **key))
    expected = read_picture(tmp_path / "ant" / "0.png", settings(tmp_path, **key))
    assert not np.array_equal(first.pixels[0], expected)
    assert np.array_equal(second.pixels[0], expected)


def test_changed_added_and_removed_pictures_are_noticed(tmp_path):
    load_folder(settings(fill(tmp_path, CLASSES)))
    picture(999).save(tmp_path / "ant" / "0.png")
    assert np.array_equal(load_folder(settings(tmp_path)).pixels[0], picture_pixels(picture(999), settings(tmp_path)))
    picture(998).save(tmp_path / "ant" / "7.png")
    (tmp_path / "bee" / "0.png").unlink()
    assert load_folder(settings(tmp_path)).class_sizes() == [3, 1, 2, 2]


def mapped_files():
    with open("/proc/self/maps") as file:
        return file.read()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux tells what is mapped")
def test_more_than_max_memory_is_read_from_the_disk(tmp_path, monkeypatch):
    fill(tmp_path, CLASSES)
    size = {"image_size": 300}  # 2.1 MiB in all
    in_memory = load_folder(settings(tmp_path, **size))
    cache = cache_folder(tmp_path) / "pictures-3x300x300.pt"
    assert str(cache) not in mapped_files()
    cache.unlink()
    on_disk = load_folder(settings(tmp_path, **size, max_memory=1))
    assert str(cache) in mapped_files()
    assert torch.equal(on_disk.pixels, in_memory.pixels)
    assert torch.equal(on_disk.pixels[torch.tensor([6, 1])], in_memory.pixels[torch.tensor([6, 1])])
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    without_decoding(monkeypatch)
    assert torch.equal(load_folder(settings(tmp_path, **size, max_memory=1)).pixels, in_memory.pixels)


def test_large_pictures_without_room_on_the_disk_are_refused(tmp_path, monkeypatch):
    fill(tmp_path, CLASSES)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**21))
    message = r"take 2 MiB, which is more than data.max_memory.*cannot be kept.*has 2 MiB left, and 4 are needed.*raise"
    with pytest.raises(UserError, match=message):
        load_folder(settings(tmp_path, image_size=300, max_memory=1))


def test_a_cache_that_cannot_be_written_matters_only_where_it_is_needed(tmp_path):
    fill(tmp_path, CLASSES)
    cache_folder(tmp_path).parent.mkdir(parents=True, exist_ok=True)
    cache_folder(tmp_path).write_text("a file in the way")
    with pytest.warns(UserWarning, match="could not be cached"):
        assert len(load_folder(settings(tmp_path)).pixels) == 8
    with pytest.raises(UserError, match=r"cannot be kept on the disk: cannot create the folder .*/maml_l2l/folders/"):
        load_folder(settings(tmp_path, image_size=300, max_memory=1))


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir()])
def test_a_missing_or_empty_folder_names_both_ways_out(tmp_path, make):
    make(tmp_path / "data")
    found = r"(are no pictures in|is no folder) .*data\. "
    message = found + r"Put .*data/cat/1.jpg, or run `python -m maml_l2l.download --path .*data` for O"
    with pytest.raises(UserError, match=message):
        load_folder(settings(tmp_path / "data"))


def one_file(root):
    root.write_text("")


def no_class_folders(root):
    fill(root, ["."])


def stray_pictures(root):
    picture(5).save(fill(root, ["cat", "dog", "dog_more"]) / "IMG_1.JPG")


def empty_classes(root):
    for number in range(12):
        (fill(root, CLASSES) / f"empty{number:02d}").mkdir()


def pictures_in_a_part(root):
    fill(root, ["train/ant", "val"])


def a_class_in_two_parts(root):
    fill(root, ["train/ant", "train/bee", "val/cat", "test/bee"])


def a_link_to_nowhere(root):
    (fill(root, CLASSES) / "ant" / "1.jpg").symlink_to("nowhere.jpg")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_file, r"data is a file\. Name the folder that holds a folder of pictures for each class"),
        (no_class_folders, r"data holds files, but no class folders\. Put pictures into .*data/cat/1.jpg"),
        (
            stray_pictures,
            r"data holds pictures beside its folders \(cat, dog, dog_more\), which belong to no class: IMG_1.JPG",
        ),
        (empty_classes, r"data holds folders without pictures: empty00, .*empty09 and 2 more\. Fill or remove them"),
        (pictures_in_a_part, r"data/val holds files, but no class folders"),
        (a_class_in_two_parts, r"the same classes in two parts, so .*: bee \(test and train\)\. Leave each in one"),
        (a_link_to_nowhere, r"cannot read .*ant/1.jpg: No such file or directory"),
    ],
)
def test_a_folder_that_does_not_serve_is_refused(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        load_folder(settings(tmp_path / "data"))


def damage(root):
    (root / "ant" / "0.png").write_bytes((root / "ant" / "0.png").read_bytes()[:60])
    (root / "cat" / "clip.mp4").write_text("no picture")


def test_files_that_are_no_pictures_and_damaged_ones_are_refused_by_name(tmp_path):
    damage(fill(tmp_path, CLASSES))
    message = (
        r"2 of 9 files cannot be read as pictures \(data.skip_damaged: true leaves them out\): "
        r".*ant/0.png cannot be read: .*cat/clip.mp4 is not a picture"
    )
    with pytest.raises(UserError, match=message):
        load_folder(settings(tmp_path))


@pytest.mark.parametrize("max_memory", [4096, 1])
def test_damaged_files_are_skipped_and_counted_on_request_each_time(tmp_path, caplog, max_memory):
    data = {"image_size": 300, "max_memory": max_memory}
    fill(tmp_path, CLASSES)
    whole = load_folder(settings(tmp_path, **data)).pixels.clone()
    damage(tmp_path)
    for _ in range(2):
        images = load_folder(settings(tmp_path, **data, skip_damaged=True))
        assert "left out 2 of 9 files, which cannot be read as pictures" in caplog.text
        caplog.clear()
        assert images.class_sizes() == [1, 2, 2, 2]
        assert torch.equal(images.pixels, whole[1:])
    with pytest.raises(UserError, match=r"2 of 9 files cannot be read"):
        load_folder(settings(tmp_path, **data))


@pytest.mark.parametrize("max_memory", [4096, 1])
def test_a_class_without_a_readable_picture_is_left_out_of_tasks_and_the_split_stays(tmp_path, caplog, max_memory):
    fill(tmp_path, CLASSES, pictures=1)
    size = {"image_size": 600, "max_memory": max_memory}
    before = class_split(settings(tmp_path, **size), load_folder(settings(tmp_path, **size)))
    damage(tmp_path)
    data = settings(tmp_path, skip_damaged=True, **size)
    for _ in range(2):
        images = load_folder(data)
        assert "left out 1 of 4 classes, which have no other: ant\n" in caplog.text
        caplog.clear()
        assert images.class_sizes() == [0, 1, 1, 1]
    assert class_split(data, images) == before
    sizes = {"ways": 2, "shots": 1, "queries": 0}
    tasks = TaskStream(images, list(CLASSES), split="train", rotate=False, seed=0, **sizes)
    with pytest.raises(UserError, match=r"task.ways is 4, but the train split holds 3 of the 4 classes"):
        TaskStream(images, list(CLASSES), split="train", rotate=False, seed=0, **sizes | {"ways": 4})
    assert tasks.draw(0, 2)[0].shape == (2, 2, 1, 3, 600, 600)


def test_a_folder_without_a_readable_picture_is_refused(tmp_path):
    fill(tmp_path, ["ant"], pictures=1)
    (tmp_path / "ant" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the 1 files can be read as pictures: .*0.png is not a picture that"):
        load_folder(settings(tmp_path, skip_damaged=True))


def test_the_same_picture_in_two_classes_is_warned_of(tmp_path):
    fill(tmp_path, CLASSES)
    shutil.copy(tmp_path / "ant" / "1.png", tmp_path / "dog" / "copy.png")
    with pytest.warns(UserWarning, match=r"the same picture is in two classes: .*ant/1.png and .*dog/copy.png$"):
        load_folder(settings(tmp_path))


def test_the_same_picture_twice_in_one_class_is_not(tmp_path):
    fill(tmp_path, CLASSES)
    shutil.copy(tmp_path / "ant" / "1.png", tmp_path / "ant" / "copy.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_folder(settings(tmp_path))


@pytest.mark.slow
def test_omniglot_as_a_folder_has_the_pixels_of_omniglot(omniglot_root, omniglot_as_folder):
    expected = load_omniglot(omniglot_root)
    found = load_folder(settings(omniglot_as_folder, image_size=28, channels=1, invert=True))
    assert found.class_names == expected.class_names
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.pixels, expected.pixels)


links = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes as POSIX has them")


@links
@pytest.mark.parametrize("chosen", ["class", "support", "query"])
def test_a_pipe_among_pictures_is_refused_instead_of_waited_for(tmp_path, chosen):
    fill(tmp_path, CLASSES)
    os.mkfifo(tmp_path / "ant/pipe.png")
    with pytest.raises(UserError, match=r"pipe.png cannot be read: it is a pipe, a device or a socket"):
        if chosen == "class":
            load_folder(settings(tmp_path))
        else:
            paths = (
                support_pictures(tmp_path)[0] if chosen == "support" else query_pictures([tmp_path / "ant/pipe.png"])
            )
            for path in paths:
                read_picture(path, settings(tmp_path))
    assert load_folder(settings(tmp_path, skip_damaged=True)).class_sizes() == [2, 2, 2, 2]


@links
def test_the_cache_is_not_written_through_a_link(tmp_path):
    fill(tmp_path / "data", CLASSES)
    (tmp_path / "outside").mkdir()
    cache_folder(tmp_path / "data").parent.mkdir(parents=True, exist_ok=True)
    cache_folder(tmp_path / "data").symlink_to(tmp_path / "outside")
    with pytest.warns(
        UserWarning, match=r"could not be cached: .*/folders/data-.* is a link, and nothing is written th"
    ):
        assert load_folder(settings(tmp_path / "data")).class_names == CLASSES
    with (
        pytest.raises(UserError, match=r"cannot be kept on the disk: .*/folders/data-.* is a link"),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(folder_data, "_MIB", 1)
        load_folder(settings(tmp_path / "data", max_memory=1))
    assert list((tmp_path / "outside").iterdir()) == []


@links
@pytest.mark.parametrize("target", ["..", ".", "bee"])
def test_links_that_lead_back_are_refused(tmp_path, target):
    """Two of them in each folder would make more paths than can be walked."""
    fill(tmp_path, CLASSES)
    for name in ("one", "two"):
        (tmp_path / "nest" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "nest" / name).symlink_to(tmp_path / target, target_is_directory=True)
    with pytest.raises(UserError, match=r"leads by a link to a folder that was read already\. Remove one of the two"):
        load_folder(settings(tmp_path))


def test_what_a_killed_process_decoded_to_the_disk_is_removed(tmp_path, monkeypatch):
    fill(tmp_path, CLASSES)
    left = cache_folder(tmp_path) / ".pixels.0123abcd.tmp"
    left.mkdir(parents=True)
    (left / "pixels").write_bytes(bytes(1000))
    monkeypatch.setattr(folder_data, "_MIB", 1)
    assert len(load_folder(settings(tmp_path, max_memory=1)).labels) == 8
    assert not left.exists()
