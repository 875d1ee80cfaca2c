"""One picture: what the network sees of every kind of file, and what a user reads where it sees nothing."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from maml_l2l.config import Data
from maml_l2l.data.ink import ink_pixels
from maml_l2l.data.pictures import picture_pixels, read_picture
from maml_l2l.system.errors import UserError
from tests.commands import ROOT, assert_user_error


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def smooth(height, width):
    """(height, width, 3) uint8, without the fine detail that rounding and compression change."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 255 // (height + width)], -1)


def folder(**keys):
    return Data(name="folder", **keys)


def test_colour_pictures_are_84_pixels_wide_and_grey_ones_as_asked():
    image = Image.fromarray(noise(50, 70))
    assert picture_pixels(image, folder()).shape == (3, 84, 84)
    assert picture_pixels(image, folder(channels=1, image_size=32)).shape == (1, 32, 32)
    assert picture_pixels(image, folder()).dtype == np.uint8


def test_a_picture_of_the_right_size_comes_through_unchanged():
    pixels = noise(28, 28)
    for fit in ("crop", "pad"):
        found = picture_pixels(Image.fromarray(pixels), folder(image_size=28, fit=fit))
        assert (found == pixels.transpose(2, 0, 1)).all()


def test_the_middle_is_cropped_and_resized_with_antialiasing():
    pixels = noise(40, 100)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    expected = F.interpolate(whole, (16, 40), mode="bilinear", antialias=True)[0, :, :, 12:28].numpy()
    found = picture_pixels(Image.fromarray(pixels), folder(image_size=16))
    assert np.abs(found - expected).max() <= 1


def test_padding_keeps_the_whole_picture_on_white():
    found = picture_pixels(Image.fromarray(np.zeros((20, 40, 3), np.uint8)), folder(image_size=40, fit="pad"))
    assert (found[:, 10:30] == 0).all()
    assert (found[:, :10] == 255).all() and (found[:, 30:] == 255).all()


def test_inverted_drawings_have_the_pixels_of_omniglot():
    drawing = Image.fromarray(noise(28, 28, 1) < 200)
    data = folder(image_size=28, channels=1, invert=True)
    assert drawing.mode == "1"
    assert (picture_pixels(drawing, data) == ink_pixels(drawing)).all()
    assert (picture_pixels(drawing, Data()) == ink_pixels(drawing)).all()


@pytest.mark.parametrize("data", [folder(image_size=28, channels=1, invert=True), Data()])
def test_transparent_paper_is_white(data):
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[5:9, 3:20, 3] = 255
    found = picture_pixels(Image.fromarray(ink), data)
    assert (found == ink[None, ..., 3]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_honoured(tmp_path, orientation):
    upright = Image.fromarray(smooth(24, 24).astype(np.uint8))
    # How the camera stored it, so that the orientation's turn brings it back (EXIF 2.3, tag 0x0112).
    turn = Image.Transpose
    stored = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    found = read_picture(tmp_path / "photo.png", folder(image_size=24))
    assert (found == np.asarray(upright).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_read_with_its_brightness(mode, channels):
    grey = noise(30, 30, 1)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        grey = np.where(grey < 128, 0, 255).astype(np.uint8)
        image = Image.fromarray(np.stack([grey] * 3, -1)).convert(mode)
    found = picture_pixels(image, folder(image_size=30, channels=channels))
    assert np.abs(found.astype(int) - grey).max() <= 2


@pytest.mark.parametrize("ending", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_every_format_is_read(tmp_path, ending):
    pixels = smooth(64, 64).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"picture.{ending}")
    found = read_picture(tmp_path / f"picture.{ending}", folder(image_size=64))
    assert np.abs(found - pixels.transpose(2, 0, 1).astype(float)).mean() < (12 if ending == "gif" else 3)


def truncated(path):
    Image.fromarray(noise(60, 60)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def of_floats(path):
    Image.fromarray(np.ones((5, 5), np.float32)).save(path, "tiff")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: path.write_text("notes"),
            r"picture.png is not a picture that Pillow can read. Replace or remove",
        ),
        (lambda path: Image.new("RGB", (9, 9)).save(path, "eps"), r"picture.png is not a picture that Pillow can read"),
        (lambda path: path.write_bytes(b""), r"picture.png is not a picture that Pillow can read"),
        (truncated, r"the picture .*picture.png cannot be read: .*truncated.* Replace or remove it"),
        (of_floats, r"the picture .*picture.png cannot be used: its numbers are floats of no known range"),
        (lambda path: None, r"the picture .*picture.png cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), r"the picture .*picture.png cannot be read: it is a folder"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path, make, message):
    make(tmp_path / "picture.png")
    with pytest.raises(UserError, match=message):
        read_picture(tmp_path / "picture.png", folder())


# Pillow itself refuses above twice its limit, and warns above it
@pytest.mark.parametrize("most", [30, pytest.param(99, marks=pytest.mark.slow)])
def test_a_command_ends_at_a_decompression_bomb_with_one_line(tmp_path, most):
    Image.fromarray(noise(10, 10)).save(tmp_path / "picture.png")
    code = (
        "import sys\nfrom PIL import Image\nfrom maml_l2l import commands\nfrom maml_l2l.config import Data\n"
        "from maml_l2l.data.pictures import read_picture\nImage.MAX_IMAGE_PIXELS = int(sys.argv[2])\n"
        "commands.run(lambda: print(read_picture(sys.argv[1], Data()).shape))"
    )
    found = []
    for limit in (most, 100):
        command = [sys.executable, "-c", code, str(tmp_path / "picture.png"), str(limit)]
        found.append(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False))
    assert_user_error(found[0], f"the picture {tmp_path / 'picture.png'} is too large: ")
    assert found[0].stderr.endswith("Scale it down.\n")
    assert (found[1].stdout, found[1].stderr) == ("(1, 28, 28)\n", "")


def test_reading_pictures_leaves_pillow_s_warning_on():
    code = "import warnings, maml_l2l.data.pictures; print([kind.__name__ for _, _, kind, *_ in warnings.filters])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "DeprecationWarning" in done.stdout
    assert "DecompressionBombWarning" not in done.stdout
