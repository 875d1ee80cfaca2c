"""Ink that a person sees comes out as the same 28x28 pixels, whatever it was drawn with and on."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from maml_l2l.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from maml_l2l.config import Data, load_experiment
from maml_l2l.data import normalised_ink as module
from maml_l2l.data.glyphs import load_glyphs
from maml_l2l.data.ink import ink_pixels
from maml_l2l.data.normalised_ink import EXTENT, PEN, ink_mask, normalised_ink, pen_width
from maml_l2l.data.pictures import picture_pixels, read_picture
from maml_l2l.data.sources import load_data
from maml_l2l.experiments.training import train
from tests.commands import ROOT
from tests.test_omniglot import mirror
from tests.test_training import TINY

__all__ = ["mirror"]


def drawing(side=400, pen=8, size=0.7, at=(0.5, 0.5), ink=0, paper=255):
    """A sign of lines, a curve and a dot, which no turn or mirror leaves as it is; "L", dark on light."""
    fine = Image.new("L", (4 * side, 4 * side), paper)
    draw = ImageDraw.Draw(fine)

    def place(x, y):
        return tuple(4 * side * (centre + size * (value - 0.5)) for value, centre in zip((x, y), at, strict=True))

    for line in ([(0, 0), (0.1, 1)], [(0, 0.5), (0.6, 0.4)]):
        draw.line([place(*point) for point in line], ink, 4 * pen)
    draw.arc([*place(0.3, 0.4), *place(0.9, 1)], -90, 90, ink, 4 * pen)
    x, y = place(0.7, 0.1)
    draw.ellipse([x - 2.4 * pen, y - 2.4 * pen, x + 2.4 * pen, y + 2.4 * pen], ink)
    return fine.reduce(4)


EXPECTED = normalised_ink(drawing())


def same(found, least=0.93):
    """Whether two (28, 28) pictures have the same ink in the same places, but for the strokes' edges."""
    return np.corrcoef(found.ravel(), EXPECTED.ravel())[0, 1] > least


def test_the_pixels_are_centred_of_one_size_and_one_pen():
    assert EXPECTED.shape == (28, 28) and EXPECTED.dtype == np.uint8
    for axis in (0, 1):
        inked = np.flatnonzero((EXPECTED > 127).any(axis))
        assert abs(inked[0] + inked[-1] - 27) <= 2
    assert abs(np.ptp(np.flatnonzero((EXPECTED > 127).any(1))) + 1 - EXTENT) <= 1
    fine = np.repeat(np.repeat(EXPECTED, 8, 0), 8, 1) > 127
    assert pen_width(fine) / 8 == pytest.approx(PEN, rel=0.25)
    assert len(np.unique(EXPECTED)) > 10  # antialiased


@pytest.mark.parametrize("side", [64, 105, 400, 1000, 2500])
def test_the_canvas_does_not_matter(side):
    assert same(normalised_ink(drawing(side, pen=max(2, side // 50))))
    wide = ImageOps.expand(drawing(side, pen=max(2, side // 50)), (side, 0, side // 2, 0), 255)
    assert same(normalised_ink(wide))


@pytest.mark.parametrize(("side", "pen"), [(1000, 2), (400, 2), (400, 5), (400, 20), (400, 30), (105, 2), (105, 6)])
def test_the_pen_does_not_matter(side, pen):
    assert same(normalised_ink(drawing(side, pen)), least=0.8 if pen * 400 / side > 15 else 0.9)


@pytest.mark.parametrize(("size", "at"), [(0.7, (0.5, 0.5)), (0.3, (0.2, 0.8)), (0.1, (0.9, 0.1)), (0.9, (0.5, 0.5))])
def test_size_and_position_do_not_matter(size, at):
    assert same(normalised_ink(drawing(1200, pen=round(24 * size), size=size, at=at)), least=0.85)


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (150, 235), (100, 140), (40, 120), (5, 30), (200, 230)])
def test_grey_ink_and_grey_paper_do_not_matter(ink, paper):
    assert same(normalised_ink(drawing(ink=ink, paper=paper)))


def test_the_inverse_is_the_same():
    for picture in (drawing(), drawing(ink=40, paper=120), drawing(105, pen=3), drawing(28, pen=1)):
        found = normalised_ink(ImageOps.invert(picture)).astype(int)
        assert np.abs(found - normalised_ink(picture)).max() <= 32  # reduced pictures are rounded the other way


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_shade_does_not_matter(turn):
    light = np.linspace(0.4, 1, 400)[:, None] * np.linspace(0.8, 1, 400)
    shaded = np.asarray(drawing(ink=50)).astype(float) * np.rot90(light, turn // 90)
    assert same(normalised_ink(Image.fromarray(shaded.astype(np.uint8))))


def test_the_edge_of_a_shadow_is_no_ink():
    light = Image.new("L", (400, 400), 255)
    light.paste(166, (230, 0, 400, 400))
    soft = np.asarray(light.filter(ImageFilter.GaussianBlur(12))) / 255
    assert same(normalised_ink(Image.fromarray((np.asarray(drawing(ink=40)) * soft).astype(np.uint8))))


def on_desk(desk, margin, turn, picture=None):
    """A sheet that lies turned on a desk, photographed with shade and noise."""
    sheet, side = picture or drawing(ink=30), 400 + 2 * margin
    photo = Image.new("L", (side, side), desk)
    turned = sheet.rotate(turn, Image.Resampling.BILINEAR, expand=True)
    covered = Image.new("L", sheet.size, 255).rotate(turn, expand=True)
    photo.paste(turned, ((side - turned.width) // 2, (side - turned.height) // 2), covered)
    shade = np.linspace(1, 0.85, side)[:, None] * np.asarray(photo.filter(ImageFilter.GaussianBlur(1)), float)
    noisy = shade + np.random.default_rng(0).normal(0, 4, (side, side))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("desk", [10, 80, 150])
@pytest.mark.parametrize(("margin", "turn"), [(70, 3), (200, -8), (20, 5)])
def test_what_a_sheet_lies_on_is_no_ink(desk, margin, turn):
    upright = np.asarray(on_desk(desk, margin, turn).rotate(-turn, Image.Resampling.BILINEAR, fillcolor=desk))
    assert same(normalised_ink(Image.fromarray(upright)), 0.9)


@pytest.mark.parametrize("inner", [None, (130, 130, 270, 270)])
def test_a_frame_that_is_drawn_is_ink(inner):
    """It fills the picture, so that it could be what a sheet lies on."""
    picture = Image.new("L", (400, 400), 255)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 399, 399), outline=0, width=16)
    if inner:
        pen.ellipse(inner, outline=0, width=16)
    margins = ImageOps.expand(picture, 80, 255)
    np.testing.assert_allclose(normalised_ink(picture), normalised_ink(margins), atol=130)


def test_noise_and_compression_do_not_matter():
    rng = np.random.default_rng(0)
    noisy = np.asarray(drawing(ink=50, paper=210)) + rng.normal(0, 15, (400, 400))
    stored = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stored, "JPEG", quality=50)
    assert same(normalised_ink(Image.open(stored)))


def test_specks_are_no_ink_and_dots_are():
    rng = np.random.default_rng(0)
    picture = np.array(drawing())
    for row, column in 2 * rng.integers(0, 199, (60, 2)):
        picture[row : row + 2, column : column + 2] = 0
    assert same(normalised_ink(Image.fromarray(picture)))
    assert EXPECTED[:9, 15:].max() > 200  # the dot, apart from all other ink


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30), (250, 240, 90)])
def test_strokes_on_transparent_paper_are_read_in_any_colour(colour):
    stroke = Image.new("RGBA", (400, 400), (*colour, 0))
    stroke.putalpha(ImageOps.invert(drawing()))
    assert same(normalised_ink(stroke))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV"])
def test_every_mode_is_read(mode):
    assert same(normalised_ink(drawing().convert("RGB").convert(mode)))


def test_a_pen_of_the_paper_s_brightness_is_read_by_its_colour():
    ink = np.asarray(drawing()) < 128
    for pen, paper in (((255, 255, 0), (255, 255, 255)), ((0, 0, 255), (0, 0, 0)), ((60, 60, 255), (70, 110, 60))):
        assert same(normalised_ink(Image.fromarray(np.where(ink[..., None], pen, paper).astype(np.uint8))))


def test_28_pixels_and_105_of_the_same_drawing_give_nearly_the_same():
    large = drawing(105, pen=3).convert("1", dither=Image.Dither.NONE)
    small = large.resize((28, 28), Image.Resampling.NEAREST)
    assert same(normalised_ink(large)) and same(normalised_ink(small), least=0.8)


@pytest.mark.parametrize(("dtype", "most"), [(np.uint16, 65535), (np.int32, 255), (np.int32, 10**6), (np.float32, 1)])
def test_numbers_of_any_range_are_read(dtype, most):
    values = np.asarray(drawing()) / 255
    for grey in (values, 1 - values):
        assert same(normalised_ink(Image.fromarray((most * grey).astype(dtype))))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_nothing_has_no_ink(level):
    assert not normalised_ink(Image.new("L", (300, 200), level)).any()
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(level, 10, (300, 200)).clip(0, 255).astype(np.uint8)
        assert not ink_mask(Image.fromarray(noise)).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (3000, 4)])
def test_tiny_and_narrow_pictures_pass(size):
    for level in (0, 255):
        picture = Image.new("L", size, 255 - level)
        picture.putpixel((size[0] // 2, size[1] // 2), level)
        assert normalised_ink(picture).shape == (28, 28)


def test_people_s_pictures_go_the_way_of_the_training_data(tmp_path, mirror, glyphs_root):
    data = Data(root=str(tmp_path), source=str(mirror), ink="normalised")
    images = load_data(data)
    files = sorted((tmp_path / "omniglot-py").rglob("*.png"))
    assert len(files) == len(images.pixels)
    for file, pixels in zip(files, images.pixels, strict=True):
        assert (read_picture(file, data) == pixels.numpy()).all()
    folder = load_data(Data(name="folder", root=str(tmp_path / "omniglot-py/images_evaluation"), ink="normalised"))
    assert (folder.pixels == images.pixels[-len(folder.pixels) :]).all()
    for drawn in (data, Data(name="glyphs", ink="normalised"), Data(name="folder", ink="normalised")):
        assert (picture_pixels(drawing(), drawn)[0] == EXPECTED).all()


def test_the_exif_orientation_is_honoured_before_ink_is_looked_for():
    stored = drawing().transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6
    assert same(picture_pixels(stored, Data(ink="normalised"))[0])


def test_each_ink_has_its_cache_and_a_new_version_makes_a_new_one(tmp_path, mirror, monkeypatch):
    def pixels(**keys):
        return load_data(Data(root=str(tmp_path), source=str(mirror), **keys)).pixels

    finn, normalised = pixels(), pixels(ink="normalised")
    assert (finn != normalised).any()
    monkeypatch.setitem(module.READERS, "finn", None)  # nothing is decoded again
    with monkeypatch.context() as patch:
        patch.setitem(module.READERS, "normalised", None)
        assert (pixels() == finn).all() and (pixels(ink="normalised") == normalised).all()
    monkeypatch.setattr(module, "NORMALISATION_VERSION", 0)
    monkeypatch.setitem(module.READERS, "normalised", lambda image: np.full((28, 28), 7, np.uint8))
    assert (pixels() == finn).all() and (pixels(ink="normalised") == 7).all()


def test_glyphs_are_the_same_drawings_in_either_ink(glyphs_root):
    finn, normalised = (load_glyphs(glyphs_root, alphabets=1, ink=ink) for ink in ("finn", "normalised"))
    assert finn.class_names == normalised.class_names
    assert finn.pixels.unique().tolist() == [0, 255]
    for small, ink in zip(finn.pixels[::40, 0].numpy(), normalised.pixels[::40, 0].numpy(), strict=True):
        again = normalised_ink(Image.fromarray(255 - small))
        assert np.corrcoef(again.ravel(), ink.ravel())[0, 1] > 0.7


def test_a_checkpoint_says_which_ink_it_needs_and_older_ones_need_finn_s(glyphs_root, tmp_path):
    settings = [*TINY, f"data.root={glyphs_root}", "data.ink=normalised", "train.augment=1", "train.iterations=2"]
    train(load_experiment(None, settings), tmp_path / "run")
    data = load_checkpoint(tmp_path / "run" / "last.pth").experiment.data
    assert data.ink == "normalised"
    assert (picture_pixels(drawing(), data)[0] == EXPECTED).all()
    older = load_checkpoint(ROOT / "pretrained" / "omniglot_20w1s_meta_curvature.pth")
    del older.config["data"]["ink"]
    save_checkpoint(older, tmp_path / "older.pth")
    older = load_checkpoint(tmp_path / "older.pth")
    assert older.experiment.data.ink == "finn"
    assert (picture_pixels(drawing(), older.experiment.data)[0] == ink_pixels(drawing())).all()
