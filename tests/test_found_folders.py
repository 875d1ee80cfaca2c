"""Folders as people have them: split, with runs, links and servers' folders in them, archives, moved or half of it."""

import errno
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from maml_l2l.config import load_experiment
from maml_l2l.data import folder_contents
from maml_l2l.data.class_folders import find_classes, looks_like_classes, query_pictures, support_pictures
from maml_l2l.data.folder import cache_folder, load_folder
from maml_l2l.data.omniglot import load_omniglot
from maml_l2l.data.omniglot_folder import check_no_part, holds_omniglot, omniglot_folder
from maml_l2l.data.sources import class_split, load_data, split_in_words
from maml_l2l.data.splits import unseen_classes
from maml_l2l.experiments.resuming import claimed
from maml_l2l.experiments.training import train
from maml_l2l.system import run_files
from maml_l2l.system.errors import UserError
from tests.test_image_folder import CLASSES, fill, links, settings
from tests.test_omniglot import mirror

__all__ = ["mirror"]


def names(root):
    return find_classes(root).class_names


def in_words(root):
    images = load_folder(settings(root))
    return split_in_words(settings(root), images, class_split(settings(root), images))


# --- splits ---


@pytest.mark.parametrize(
    "tops",
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Train", "Valid", "Test"),
        ("TRAIN", "VALIDATION", "TEST"),
        ("training", "dev", "testing"),
        ("meta-train", "meta-val", "meta-test"),
        ("metatrain", "metaval", "metatest"),
    ],
)
def test_a_given_split_is_taken_by_any_usual_name_and_said(tmp_path, tops):
    fill(tmp_path, [f"{top}/{name}" for top, name in zip(tops, ("ant", "bee", "cat"), strict=True)], pictures=1)
    images = load_folder(settings(tmp_path))
    assert class_split(settings(tmp_path), images) == {"train": ["ant"], "val": ["bee"], "test": ["cat"]}
    assert in_words(tmp_path) == f"the classes of {tmp_path} are split by its folders: 1 train, 1 val, 1 test"


def test_which_split_is_used_is_always_said(tmp_path):
    fill(tmp_path / "random", [f"class{number}" for number in range(10)], pictures=1)
    assert in_words(tmp_path / "random").endswith("split at random (data.split_seed 0): 6 train, 2 val, 2 test")
    fill(tmp_path / "two", [*(f"train/class{number}" for number in range(5)), "Test/cat"], pictures=1)
    assert in_words(tmp_path / "two").endswith("by its folders, val out of train at random: 4 train, 1 val, 1 test")


def test_training_says_which_split_it_uses(shapes_root, tmp_path, caplog):
    small = ["data.name=folder", "data.image_size=20", "model.filters=4", "train.meta_batch=1", "train.iterations=1"]
    run = load_experiment(None, [*small, f"data.root={shapes_root}", "train.validate_tasks=2", "task.ways=2"])
    train(run, tmp_path / "run")
    assert (
        f"the classes of {shapes_root} are split at random (data.split_seed 0): 18 train, 6 val, 6 test" in caplog.text
    )


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["train/ant", "val/bee", "test/cat", "extra/dog"],
            r"parts of a split \(test, train, val\), and beside them ext",
        ),
        (
            ["Train/ant", "Test/bee", "plane"],
            r"parts of a split \(Test, Train\), and beside them plane\. Move those away",
        ),
        (
            ["train/ant", "val/bee", "valid/cat"],
            r"holds one part of a split twice: train, val, valid\. Keep one folder",
        ),
        (["Train/ant", "VALID/ant"], r"the same classes in two parts, .*: ant \(Train and VALID\)"),
    ],
)
def test_a_split_that_is_unclear_is_refused(tmp_path, folders, message):
    with pytest.raises(UserError, match=message):
        find_classes(fill(tmp_path, folders, pictures=1))


def test_one_part_alone_and_classes_called_so_are_no_split(tmp_path):
    assert find_classes(fill(tmp_path / "1", ["train/ant", "train/bee"], pictures=1)).parts is None
    assert find_classes(fill(tmp_path / "2", ["Test", "train", "plane"], pictures=1)).parts is None


# --- what stands beside the pictures ---


@pytest.mark.parametrize(
    "name", ["@eaDir", ".@__thumb", "@Recycle", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"]
)
def test_folders_of_servers_and_systems_are_passed_over_everywhere(tmp_path, name):
    root = fill(tmp_path, ["train/ant", "val/bee", "test/cat"], pictures=1)
    for place in (root, root / "train", root / "train/ant"):
        fill(place, [name], pictures=1)
    assert names(root) == ("ant", "bee", "cat")
    assert len(query_pictures([root])) == 3


def test_an_unknown_folder_in_a_class_is_named(tmp_path):
    fill(tmp_path, ["ant", "bee", "ant/thumbs"], pictures=1)
    with pytest.raises(
        UserError, match=r"ant holds pictures beside its folders \(thumbs\), .*: 0.png\. Move or remove"
    ):
        names(tmp_path)


def finished_run(folder):
    folder.mkdir(parents=True)
    for name in (run_files.LOCK, *run_files.NAMES, "tensorboard/events"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")


def test_runs_among_the_classes_are_passed_over_and_said(tmp_path, caplog):
    fill(tmp_path, CLASSES, pictures=1)
    finished_run(tmp_path / "runs/model")
    with claimed(tmp_path / "runs/new"):
        assert names(tmp_path) == CLASSES
    assert f"passed over the folders of runs: {tmp_path}/runs/model, {tmp_path}/runs/new" in caplog.text
    assert len(query_pictures([tmp_path])) == 4


def test_a_copied_run_without_its_lock_is_one_and_pictures_beside_a_lock_are_none(tmp_path):
    fill(tmp_path, CLASSES, pictures=1)
    finished_run(tmp_path / "copy")
    (tmp_path / "copy" / run_files.LOCK).unlink()
    (tmp_path / "ant" / run_files.LOCK).write_text("")
    assert names(tmp_path) == CLASSES


def test_training_inside_its_own_data_works(shapes_root, tmp_path, monkeypatch):
    for number in range(8):
        shutil.copytree(shapes_root / f"class{number:02d}", tmp_path / f"class{number:02d}")
    monkeypatch.chdir(tmp_path)
    small = [
        "data.name=folder",
        "data.image_size=20",
        "model.filters=4",
        "train.meta_batch=1",
        "train.validate_tasks=2",
    ]
    train(load_experiment(None, [*small, "data.root=.", "train.iterations=1", "task.ways=2"]), "runs/model", "m.pth")
    assert len(names(tmp_path)) == 8


# --- the cache ---


def test_the_cache_stands_outside_the_data_and_each_folder_has_its_own(tmp_path):
    roots = [fill(tmp_path / place / "pets", CLASSES, pictures=1) for place in ("one", "other")]
    before = sorted(path for path in tmp_path.rglob("*"))
    for root in roots:
        load_folder(settings(root))
    assert sorted(path for path in tmp_path.rglob("*")) == before
    caches = [cache_folder(root) for root in roots]
    assert caches[0] != caches[1] and all(path.name.startswith("pets-") for path in caches)
    assert all(list(path.iterdir()) == [path / "pictures-3x10x10.pt"] for path in caches)
    assert all(os.fspath(path).startswith(os.environ["XDG_CACHE_HOME"]) for path in caches)


def test_torchvision_s_image_folder_finds_the_classes_that_we_do(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    load_folder(settings(fill(tmp_path, CLASSES, pictures=1)))
    assert datasets.ImageFolder(str(tmp_path)).classes == list(CLASSES)


@links
def test_however_a_folder_is_named_it_has_one_cache(tmp_path, monkeypatch):
    fill(tmp_path / "pets", CLASSES, pictures=1)
    (tmp_path / "link").symlink_to("pets")
    monkeypatch.chdir(tmp_path)
    expected = cache_folder(tmp_path / "pets")
    for root in ("pets", "./pets/../pets", "link"):
        assert cache_folder(Path(root)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the home folder is not needed")
def test_the_cache_of_an_earlier_version_is_ignored(tmp_path):
    fill(tmp_path, CLASSES, pictures=1)
    (tmp_path / ".maml_l2l").mkdir()
    (tmp_path / ".maml_l2l/pictures-3x10x10.pt").write_text("old")
    assert len(load_folder(settings(tmp_path)).pixels) == 4
    assert (tmp_path / ".maml_l2l/pictures-3x10x10.pt").read_text() == "old"


# --- links ---


@links
def test_links_among_queries_are_followed_and_loops_stopped(tmp_path):
    fill(tmp_path / "real", ["ant", "bee"])
    fill(tmp_path / "q", ["."], pictures=1)
    (tmp_path / "q/linked").symlink_to("../real/ant")
    (tmp_path / "q/linked.png").symlink_to("../real/bee/0.png")
    for name, target in (("loop", "."), ("above", ".."), ("again", "../real/ant")):
        (tmp_path / "q" / name).symlink_to(target)
    found = [os.path.relpath(path, tmp_path / "q") for path in query_pictures([tmp_path / "q"])]
    twice = {"again", "linked"}
    assert {path.partition("/")[0] for path in found} - twice == {"0.png", "linked.png"}
    assert sorted(path.rpartition("/")[2] for path in found) == ["0.png", "0.png", "1.png", "linked.png"]


@links
def test_a_link_to_nowhere_and_a_folder_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    fill(tmp_path, ["ant"], pictures=1)
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    assert query_pictures([tmp_path]) == [str(tmp_path / "ant/0.png"), str(tmp_path / "broken.png")]

    def refused(folder, scandir=os.scandir):
        if os.fspath(folder).endswith("ant"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(folder_contents.os, "scandir", refused)
    with pytest.raises(UserError, match=r"cannot read .*/ant: Permission denied\. Make it readable, or remove it"):
        query_pictures([tmp_path])


# --- archives ---


@pytest.mark.parametrize("name", ["d.zip", "d.tar", "d.tar.gz", "d.TGZ", "d.tar.xz", "d.7z", "d.rar"])
def test_an_archive_in_place_of_a_folder_is_to_be_unpacked(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("ant/0.png", "")
    for use in (find_classes, support_pictures):
        with pytest.raises(UserError, match=rf"{name} is an archive\. Unpack it, and name the folder that holds"):
            use(tmp_path / name)


# --- Omniglot's folder, and halves of it ---


def test_omniglot_is_recognised_by_the_folder_inside(tmp_path, mirror, monkeypatch):
    expected = load_omniglot(tmp_path, source=str(mirror))
    for root in (tmp_path, tmp_path / "omniglot-py"):
        assert holds_omniglot(root)
        assert load_omniglot(root).class_names == expected.class_names
    assert not (tmp_path / "omniglot-py/omniglot-py").exists()
    monkeypatch.chdir(tmp_path / "omniglot-py")
    assert load_omniglot(".").class_names == expected.class_names
    assert omniglot_folder(tmp_path / "new") == tmp_path / "new/omniglot-py"


@pytest.mark.parametrize("root", ["unpacked", "unpacked/images_background"])
def test_omniglot_in_another_folder_is_not_taken_for_pictures_nor_downloaded_into(tmp_path, root):
    (tmp_path / "unpacked/images_background").mkdir(parents=True)
    for use in (check_no_part, load_omniglot):
        with pytest.raises(
            UserError, match=r"holds drawings of Omniglot\. Put images_background and images_evaluation"
        ):
            use(tmp_path / root)
    check_no_part(tmp_path)


# --- classes of a checkpoint under other names ---

SPLIT = {"train": ["ant", "bee"], "val": ["cat"], "test": ["dog", "elk"]}


@pytest.mark.parametrize("prefix", ["", "up/", "a/b/"])
def test_the_classes_of_a_checkpoint_are_recognised_deeper_and_higher(prefix):
    deeper = [f"{prefix}{name}" for name in ("ant", "bee", "cat", "dog", "elk")]
    assert unseen_classes(SPLIT, "test", deeper) == [f"{prefix}dog", f"{prefix}elk"]
    split = {part: [f"{prefix}{name}" for name in found] for part, found in SPLIT.items()}
    assert unseen_classes(split, "test", ["ant", "bee", "cat", "dog", "elk"]) == ["dog", "elk"]


def test_names_that_only_look_alike_are_other_classes():
    split = {"train": ["Greek/1", "Latin/1"], "val": ["Greek/2"], "test": ["Latin/2"]}
    assert unseen_classes(split, "test", ["1", "2", "3"]) == ["1", "2", "3"]  # of which alphabet, nobody knows
    assert unseen_classes(split, "test", ["Cyrillic/1", "Cyrillic/2"]) == ["Cyrillic/1", "Cyrillic/2"]
    assert unseen_classes(SPLIT, "test", ["elephant", "up/elephant"]) == ["elephant", "up/elephant"]


def test_training_classes_alone_and_classes_twice_are_refused_under_other_names_too():
    with pytest.raises(
        UserError, match="2 of the 2 test classes of the checkpoint are not in the data set, the first i"
    ):
        unseen_classes(SPLIT, "test", ["up/ant", "up/bee"])
    with pytest.raises(UserError, match="a/dog and b/dog are one class of the checkpoint"):
        unseen_classes(SPLIT, "test", ["a/dog", "a/elk", "b/dog"])


def test_classes_that_trained_an_earlier_network_are_left_out_under_other_names_too():
    assert unseen_classes(SPLIT, "test", ["up/fox", "up/gnu"], earlier_classes=["fox"]) == ["up/gnu"]


# --- pictures where another data set was asked for ---


@pytest.mark.parametrize("name", ["omniglot", "glyphs", "drawings"])
@pytest.mark.parametrize("tops", ["", "train/"])
def test_nothing_is_put_beside_the_user_s_pictures(tmp_path, name, tops):
    fill(tmp_path, [f"{tops}{letter}" for letter in "abc"], pictures=1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"holds folders of pictures, and data.name is {name}, .* --set data.name=fol"):
        load_data(load_experiment(None, [f"data.name={name}", "data.split=alphabets", f"data.root={tmp_path}"]).data)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_a_few_pictures_may_hold_data(tmp_path):
    fill(tmp_path, ["plots"], pictures=1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert not looks_like_classes(tmp_path)
    assert not looks_like_classes(tmp_path / "absent")
