"""Omniglot: downloading, mending, decoding; on small archives, and on the real ones where they are."""

import io
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from maml_l2l.data import archives, omniglot
from maml_l2l.system.errors import UserError
from tests.conftest import send

CHARACTERS, DRAWINGS = 3, 2  # of each part of the small Omniglot
ALPHABETS = {"images_background": "Futurama", "images_evaluation": "Keble"}


def png(seed):
    paper = np.random.default_rng(seed).random((105, 105)) < 0.9
    buffer = io.BytesIO()
    Image.fromarray(paper).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder with two small archives, made known to the package by their sums; no network."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    parts = []
    for name, alphabet in ALPHABETS.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as file:
            file.writestr(f"__MACOSX/{name}/{alphabet}/._character01", b"junk")
            file.writestr(f"{name}/.DS_Store", b"junk")
            for character in reversed(range(CHARACTERS)):
                for drawing in range(DRAWINGS):
                    entry = f"character{character + 1:02d}/{character:04d}_{drawing + 1:02d}.png"
                    file.writestr(f"{name}/{alphabet}/{entry}", png(10 * character + drawing))
        parts.append(omniglot._Part(name, archives.md5_sum((folder / f"{name}.zip").read_bytes()), CHARACTERS))
    monkeypatch.setattr(omniglot, "_PARTS", tuple(parts))
    monkeypatch.setattr(omniglot, "DRAWINGS", DRAWINGS)
    monkeypatch.setattr(omniglot, "BASE_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setattr(archives, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


def answer_from(folder, sent=None):
    """A web server's answer: the file of that name below /x/, broken off after `sent` bytes; or 404."""

    def answer(handler):
        path = folder / handler.path.removeprefix("/x/")
        send(handler, path.read_bytes(), sent) if path.is_file() else handler.send_error(404)

    return answer


def torchvision_layout(root, mirror):
    """What torchvision leaves behind: the archives and everything in them, junk included."""
    for archive in mirror.iterdir():
        (root / "omniglot-py").mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, root / "omniglot-py")
        with zipfile.ZipFile(archive) as file:
            file.extractall(root / "omniglot-py")
    for junk in (
        "._Futurama/character01/0001_01.png",
        "Futurama/.hidden/1.png",
        "Futurama/character01/._1.png",
    ):
        path = root / "omniglot-py/images_background" / junk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")


def drawings(root):
    return sorted((root / "omniglot-py").glob("images_*/[!.]*/[!.]*/[!.]*.png"))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in drawings(root)}


def test_a_downloaded_copy_is_in_torchvisions_layout(tmp_path, mirror, serve):
    base = serve(answer_from(mirror)) + "/x/"
    report = omniglot.download_omniglot(tmp_path, base)
    assert report == f"Omniglot is in {tmp_path}/omniglot-py: 2 alphabets, 6 characters, 12 images."
    torchvision_layout(tmp_path / "other", mirror)
    theirs = contents(tmp_path / "other")
    assert contents(tmp_path) == theirs and len(theirs) == 12
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("omniglot-py/*")}
    names = [*ALPHABETS, *(f"{name}.zip" for name in ALPHABETS)]
    assert files == {f"omniglot-py/{name}" for name in names}  # no junk, no temporary file


def test_torchvision_uses_our_copy(tmp_path, mirror, serve, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    omniglot.download_omniglot(tmp_path, serve(answer_from(mirror)) + "/x")
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", {part.name: part.md5 for part in omniglot._PARTS})
    theirs = datasets.Omniglot(tmp_path, background=False, download=True)
    assert len(theirs) == CHARACTERS * DRAWINGS


@pytest.mark.parametrize("with_archives", [True, False])
def test_torchvisions_copy_is_used_as_it_is_without_a_network(tmp_path, mirror, with_archives):
    torchvision_layout(tmp_path, mirror)
    if not with_archives:
        for archive in tmp_path.glob("omniglot-py/*.zip"):
            archive.unlink()
    before = {path: path.stat() for path in tmp_path.rglob("*.png")}
    omniglot.download_omniglot(tmp_path)
    images = omniglot.load_omniglot(tmp_path)
    assert len(images.pixels) == 12
    assert {path: path.stat() for path in tmp_path.rglob("*.png")} == before


def test_images_are_sorted_by_class_with_ink_255(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(omniglot, "_walk", lambda folder, walk=omniglot._walk: reversed(list(walk(folder))))
    images = omniglot.load_omniglot(tmp_path, str(mirror))
    assert images.class_names == tuple(f"{a}/character0{c}" for a in ("Futurama", "Keble") for c in (1, 2, 3))
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert images.pixels.shape == (12, 1, 28, 28) and images.pixels.dtype == torch.uint8
    for row, seed in enumerate([0, 1, 10, 11, 20, 21]):
        paper = np.asarray(Image.open(io.BytesIO(png(seed))))
        nearest = paper[np.ix_(*[((np.arange(28) + 0.5) * 105 / 28).astype(int)] * 2)]
        assert (images.pixels[row, 0].numpy() == np.where(nearest, 0, 255)).all()


def test_the_second_load_decodes_nothing_and_a_changed_file_is_decoded_anew(tmp_path, mirror, monkeypatch):
    first = omniglot.load_omniglot(tmp_path, str(mirror))
    with monkeypatch.context() as patch:
        patch.setattr(omniglot, "_decode", lambda files: pytest.fail("decoded again"))
        assert torch.equal(omniglot.load_omniglot(tmp_path).pixels, first.pixels)
    drawings(tmp_path)[0].write_bytes(png(99))
    assert not torch.equal(omniglot.load_omniglot(tmp_path).pixels, first.pixels)


@pytest.mark.parametrize("sent", [0, 1000])
def test_a_broken_download_leaves_no_archive_and_the_next_run_mends_it(tmp_path, mirror, serve, sent):
    with pytest.raises(UserError, match=rf"ended after {sent} of"):
        omniglot.download_omniglot(tmp_path, serve(answer_from(mirror, sent)) + "/x")
    assert list((tmp_path / "omniglot-py").iterdir()) == []
    assert "12 images" in omniglot.download_omniglot(tmp_path, serve(answer_from(mirror)) + "/x")


def test_half_an_archive_left_by_torchvision_is_fetched_again(tmp_path, mirror, serve):
    (tmp_path / "omniglot-py").mkdir()
    whole = (mirror / "images_background.zip").read_bytes()
    for verify in (True, False):
        left = tmp_path / "omniglot-py/images_background.zip"
        left.write_bytes(whole[:1500])
        omniglot.download_omniglot(tmp_path, serve(answer_from(mirror)) + "/x", verify)
        assert left.read_bytes() == whole
        shutil.rmtree(tmp_path / "omniglot-py/images_background")


@pytest.mark.parametrize("as_folder", [True, False])
def test_unknown_sums_are_refused_unless_not_verified(tmp_path, mirror, serve, as_folder):
    with zipfile.ZipFile(mirror / "images_background.zip", "a") as file:
        file.writestr("more", b"")
    source = str(mirror) if as_folder else serve(answer_from(mirror)) + "/x"
    md5 = omniglot._PARTS[0].md5
    with pytest.raises(UserError, match=rf"has the MD5 sum \w{{32}}, that of the original archive is {md5}.*--no-ver"):
        omniglot.download_omniglot(tmp_path, source)
    assert list((tmp_path / "omniglot-py").iterdir()) == []
    assert "12 images" in omniglot.download_omniglot(tmp_path, source, verify=False)


def test_a_page_instead_of_an_archive_is_refused_without_verification_too(tmp_path, mirror, serve):
    base = serve(lambda handler: send(handler, b"<html>please log in</html>"))
    with pytest.raises(UserError, match="is no whole zip archive"):
        omniglot.download_omniglot(tmp_path, base, verify=False)
    assert list((tmp_path / "omniglot-py").iterdir()) == []


def test_an_archive_of_something_else_is_refused(tmp_path, mirror):
    with zipfile.ZipFile(mirror / "images_background.zip", "w") as file:
        file.writestr("cats/1.png", b"")
    with pytest.raises(UserError, match="holds no image named images_background/<Alphabet>/<character>"):
        omniglot.download_omniglot(tmp_path, str(mirror), verify=False)


def test_a_local_source_is_not_copied(tmp_path, mirror):
    omniglot.download_omniglot(tmp_path, str(mirror))
    assert sorted(path.name for path in (tmp_path / "omniglot-py").iterdir()) == sorted(ALPHABETS)


def test_a_source_without_the_archives_says_what_a_source_is(tmp_path, mirror):
    with pytest.raises(UserError, match=r"there is no file .*nowhere/images_background\.zip.*begins with http://"):
        omniglot.download_omniglot(tmp_path, str(tmp_path / "nowhere"))


def test_an_unpacking_that_is_interrupted_leaves_no_folder_and_the_next_run_mends_it(tmp_path, mirror, monkeypatch):
    def interrupted(archive, infos, read=archives.read_files):
        for number, item in enumerate(read(archive, infos)):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(archives, "read_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            omniglot.download_omniglot(tmp_path, str(mirror))
    assert list((tmp_path / "omniglot-py").iterdir()) == []
    assert "12 images" in omniglot.download_omniglot(tmp_path, str(mirror))


def damage_nothing_but_remove(path):
    path.unlink()


def damage_to_zero_bytes(path):
    path.write_bytes(b"")


def damage_by_half(path):
    path.write_bytes(path.read_bytes()[:50])


def damage_at_the_same_size(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = [damage_nothing_but_remove, damage_to_zero_bytes, damage_by_half, damage_at_the_same_size]


@pytest.mark.parametrize("damage", DAMAGES)
def test_running_the_download_again_mends_a_damaged_copy_from_the_archive_beside_it(tmp_path, mirror, damage):
    torchvision_layout(tmp_path, mirror)
    whole = contents(tmp_path)
    mine = tmp_path / "omniglot-py/images_background/Futurama/notes.txt"
    mine.write_text("mine")
    damage(drawings(tmp_path)[3])
    assert contents(tmp_path) != whole
    omniglot.download_omniglot(tmp_path)
    assert contents(tmp_path) == whole
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("damage", DAMAGES[:2])
def test_loading_mends_what_is_missing_by_itself(tmp_path, mirror, serve, damage):
    torchvision_layout(tmp_path, mirror)
    for archive in tmp_path.glob("omniglot-py/*.zip"):
        archive.unlink()
    damage(drawings(tmp_path)[3])
    assert len(omniglot.load_omniglot(tmp_path, serve(answer_from(mirror)) + "/x").pixels) == 12


@pytest.mark.parametrize("damage", DAMAGES[2:])
def test_a_damaged_image_is_named_with_its_remedy_and_the_remedy_works(tmp_path, mirror, damage):
    omniglot.download_omniglot(tmp_path, str(mirror))
    path = drawings(tmp_path)[3]
    damage(path)
    with pytest.raises(UserError, match=rf"the image {path} is damaged .*Delete this file and run `python -m maml_l2l"):
        omniglot.load_omniglot(tmp_path)
    path.unlink()
    omniglot.download_omniglot(tmp_path, str(mirror))
    assert len(omniglot.load_omniglot(tmp_path).pixels) == 12


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [3_000, 10_000, 20_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=rf"1.png is damaged \(.*({side} x {side} pixels|exceeds limit of)"):
        omniglot._decode_file(str(tmp_path / "1.png"))


def test_only_png_is_decoded_whatever_the_file_is_called(tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "1.png", format="eps")  # Pillow would call Ghostscript
    with pytest.raises(UserError, match=r"1.png is damaged \(cannot identify image file"):
        omniglot._decode_file(str(tmp_path / "1.png"))


def test_without_a_network_the_error_says_what_was_tried_and_names_the_ways_out(tmp_path, mirror):
    (tmp_path / "omniglot-py").mkdir()
    with pytest.raises(UserError) as caught:
        omniglot.load_omniglot(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path}/omniglot-py/images_background holds 0 of 6 images" in message
    assert "cannot download http://127.0.0.1:1/images_background.zip" in message and "attempts: 3" in message
    for way_out in ("mirror", "folder", "--source", "data.source", "data.name: glyphs"):
        assert way_out in message


def test_a_folder_that_cannot_be_read_is_a_user_error(tmp_path, mirror):
    (tmp_path / "omniglot-py").write_text("a file")
    with pytest.raises(UserError, match=r"cannot read .*/omniglot-py/.*must be a readable folder in torchvision's"):
        omniglot.load_omniglot(tmp_path)


def test_a_link_that_leads_nowhere_is_a_user_error_and_not_an_empty_data_set(tmp_path, mirror):
    omniglot.download_omniglot(tmp_path, str(mirror))
    path = drawings(tmp_path)[0]
    path.unlink()
    path.symlink_to("nowhere.png")
    with pytest.raises(UserError, match=rf"cannot read {path}"):
        omniglot.load_omniglot(tmp_path)


def test_the_real_omniglot_loads_whole_and_is_decoded_once(omniglot_root, monkeypatch):
    images = omniglot.load_omniglot(omniglot_root)
    assert images.pixels.shape == (32460, 1, 28, 28)
    assert len(images.class_names) == 1623 and set(images.class_sizes()) == {20}
    assert set(images.pixels.unique().tolist()) == {0, 255}
    monkeypatch.setattr(omniglot, "_decode", None)
    assert torch.equal(omniglot.load_omniglot(omniglot_root).pixels, images.pixels)


def test_the_evaluation_alphabets_are_those_of_the_real_archive(omniglot_root):
    folders = (omniglot_root / "omniglot-py/images_evaluation").iterdir()
    assert tuple(sorted(path.name for path in folders)) == omniglot.EVALUATION_ALPHABETS


def test_the_real_archives_are_refused_while_their_sums_are_unknown(tmp_path, shared_data):
    with pytest.raises(UserError, match="68d2efa1b9178cc56df9314c21c6e718"):
        omniglot.download_omniglot(tmp_path, str(shared_data / "omniglot-28x28"))


@pytest.mark.parametrize("name, characters", [("images_background_small1", 136), ("images_background_small2", 156)])
def test_original_105x105_archives_decode_to_the_28x28_pixels(
    tmp_path, shared_data, omniglot_root, monkeypatch, name, characters
):
    md5 = archives.md5_sum((shared_data / f"omniglot-small/{name}.zip").read_bytes())
    whole = omniglot.load_omniglot(omniglot_root)
    monkeypatch.setattr(omniglot, "_PARTS", (omniglot._Part(name, md5, characters),))
    original = omniglot.load_omniglot(tmp_path, str(shared_data / "omniglot-small"))
    alphabets = {class_name.partition("/")[0] for class_name in original.class_names}
    names = [class_name for class_name in whole.class_names if class_name.partition("/")[0] in alphabets]
    assert list(original.class_names) == names and len(names) == characters and len(alphabets) == 5
    same_classes = torch.isin(whole.labels, torch.tensor([whole.class_names.index(name) for name in names]))
    assert torch.equal(original.pixels, whole.pixels[same_classes])


links = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes as POSIX has them")


@links
@pytest.mark.parametrize(
    "planted", ["omniglot-py", "omniglot-py/images_background", "omniglot-py/images_evaluation/Keble"]
)
def test_nothing_is_unpacked_through_links(tmp_path, mirror, planted):
    (tmp_path / "outside").mkdir()
    link = tmp_path / "data" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=rf"{planted} is a link, and nothing is written through links\. Put a folder"):
        omniglot.download_omniglot(tmp_path / "data", str(mirror))
    assert list((tmp_path / "outside").iterdir()) == []


@links
def test_no_cache_is_written_through_a_link(tmp_path, mirror):
    omniglot.download_omniglot(tmp_path, str(mirror))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/omniglot-py").symlink_to(tmp_path / "omniglot-py")
    with pytest.warns(UserWarning, match=r"could not be cached: .*omniglot-py is a link"):
        assert len(omniglot.load_omniglot(tmp_path / "data").pixels) == 12
    assert not (tmp_path / "omniglot-py/omniglot-28x28.pt").exists()


@links
def test_a_pipe_in_place_of_a_drawing_is_refused_or_mended(tmp_path, mirror):
    omniglot.download_omniglot(tmp_path, str(mirror))
    path = drawings(tmp_path)[3]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"is damaged \(.*it is a pipe, a device or a socket, and no regular file\)"):
        omniglot._decode_file(str(path))
    omniglot.download_omniglot(tmp_path, str(mirror))
    assert len(omniglot.load_omniglot(tmp_path).pixels) == 12


@pytest.mark.parametrize("verify", [True, False])
def test_an_archive_of_gigabytes_is_not_read(tmp_path, mirror, verify):
    with open(mirror / "images_background.zip", "r+b") as file:
        file.truncate(3 * 2**30)  # a hole, which takes no room on the disk
    with pytest.raises(
        UserError, match="is larger than 268435456 bytes" if verify else "cannot be read as a zip archive"
    ):
        omniglot.download_omniglot(tmp_path, str(mirror), verify)
    (tmp_path / "omniglot-py").mkdir(exist_ok=True)
    (mirror / "images_background.zip").rename(tmp_path / "omniglot-py/images_background.zip")
    with pytest.raises(UserError, match="is larger than 268435456 bytes" if verify else "cannot download"):
        omniglot.download_omniglot(tmp_path, verify=verify)


def test_what_a_killed_download_left_behind_is_removed(tmp_path, mirror):
    left = tmp_path / "omniglot-py/.images_background.zip.0123abcd.tmp"
    (left / "images_background").mkdir(parents=True)
    (left / "images_background/1.png").write_bytes(png(0))
    omniglot.download_omniglot(tmp_path, str(mirror))
    assert not left.exists()
