"""Ink that a person sees comes out as the same 28x28 pixels, whatever it was drawn with and on."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from maml_l2l.data.normalised_ink import EXTENT, PEN, ink_mask, normalised_ink, pen_width


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


def test_noise_and_compression_do_not_matter():
    rng = np.random.default_rng(0)
    noisy = np.asarray(drawing(ink=50, paper=210)) + rng.normal(0, 15, (400, 400))
    stored = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stored, "JPEG", quality=50)
    assert same(normalised_ink(Image.open(stored)))


def test_specks_are_no_ink_and_dots_are():
    rng = np.random.default_rng(0)
    picture = np.array(drawing())
    picture[rng.random(picture.shape) < 0.0005] = 0
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
