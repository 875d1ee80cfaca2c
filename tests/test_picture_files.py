"""Image files as phones, cameras, scanners and editors write them: the same pixels come out, or what to do."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin

from maml_l2l.data import formats
from maml_l2l.data.pictures import picture_pixels, read_picture
from maml_l2l.system.errors import UserError
from tests.test_pictures import folder, noise, smooth

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # 0 to 235
DATA = folder(image_size=6, channels=1)


def read(path, **keys):
    return read_picture(path, folder(**{"image_size": 6, "channels": 1} | keys))


def expected(pixels=GREY):
    return picture_pixels(Image.fromarray(pixels), DATA).astype(int)


# --- numbers of more than 8 bits ---


def tiff(path, bits, content, photometric=1, signed=1):
    """A minimal grey TIFF of the size of `GREY` (TIFF 6.0)."""
    height, width = GREY.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(content), 339: signed}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<L", 8 + len(content)) + content + directory)
    return path


def packed_12(values):
    first, second = values.reshape(-1, 2).T.astype(int)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("bits", "content", "tags"),
    [
        (16, (GREY.astype("<u2") * 257).tobytes(), {}),
        (16, ((255 - GREY).astype("<u2") * 257).tobytes(), {"photometric": 0}),
        (16, GREY.astype("<i2").tobytes(), {"signed": 2}),
        (12, packed_12(GREY.astype(int) * 4095 // 255), {}),
        (32, GREY.astype("<u4").tobytes(), {}),
        (32, GREY.astype("<i4").tobytes(), {"signed": 2}),
        (32, (GREY.astype("<u4") * 257).tobytes(), {}),
        (8, (255 - GREY).tobytes(), {"photometric": 0}),
    ],
    ids=["16", "16 white is zero", "16 signed", "12", "32", "32 signed", "32 of 16", "8 white is zero"],
)
def test_scans_of_any_depth_are_read_with_their_brightness(tmp_path, bits, content, tags):
    found = read(tiff(tmp_path / "scan.tif", bits, content, **tags))
    assert np.abs(found - expected()).max() <= 1


@pytest.mark.parametrize("content", [GREY.astype("<i4") - 9, GREY.astype("<i4") * 9999])
def test_integers_of_no_known_range_are_refused_by_name(tmp_path, content):
    path = tiff(tmp_path / "scan.tif", 32, content.tobytes(), signed=2)
    with pytest.raises(
        UserError, match=r"scan.tif cannot be used: its numbers are from .* of no known range\. Save it"
    ):
        read(path)


def test_16_bits_keep_their_transparent_colour(tmp_path):
    values = GREY.astype(np.uint16) * 257
    values[2:4, 3:5] = 1000  # is transparent, and 1001 is not
    values[4, 4] = 1001
    Image.fromarray(values).save(tmp_path / "grey.png", transparency=1000)
    white = np.where(values == 1000, 255, np.rint(values / 257)).astype(np.uint8)
    assert np.abs(read(tmp_path / "grey.png") - expected(white)).max() <= 1


def png_chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", checksum)


def test_16_bits_a_colour_keep_their_transparent_colour(tmp_path):
    colours = np.full((6, 6, 3), 0x2000, ">u2")
    colours[:, 3:] = (0x0101, 0xF0F0, 0x0303)
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)),
        (b"tRNS", struct.pack(">HHH", 0x0101, 0xF0F0, 0x0303)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    found = read(tmp_path / "p.png", channels=3)
    assert (found[:, :, :3] == 0x20).all() and (found[:, :, 3:] == 255).all()


def test_every_mode_that_pillow_has_is_read_or_refused():
    """Grey pictures are the same in all of them."""
    grey = np.where(noise(6, 6, 1) < 128, 0, 255).astype(np.uint8)
    for mode in Image.MODES:
        image = Image.fromarray(grey)
        if mode.startswith("I;"):
            order = {"I;16B": ">", "I;16": "<", "I;16L": "<"}.get(mode, "=")
            image = Image.frombytes(mode, image.size, (grey.astype(f"{order}u2") * 257).tobytes())
        elif mode in ("La", "PA"):
            image = image.convert("LA" if mode == "La" else "P").convert(mode)
        elif mode not in ("L", "F", "I"):
            image = image.convert("RGB").convert(mode)
        else:
            image = image.convert(mode)
        if mode == "F":
            with pytest.raises(ValueError, match="floats of no known range"):
                picture_pixels(image, DATA)
            continue
        assert np.abs(picture_pixels(image, DATA).astype(int) - grey).max() <= 2, mode


def test_every_format_that_pillow_writes_and_reads_is_read(tmp_path):
    tried = []
    for kind in sorted(set(Image.SAVE) & set(formats.formats())):
        path = tmp_path / f"picture.{kind}"
        for mode in ("RGB", "L", "P", "1"):
            try:
                Image.fromarray(smooth(64, 64).astype(np.uint8)).convert(mode).save(path, kind)
                break
            except (OSError, ValueError, KeyError):
                path.unlink(missing_ok=True)
        if not path.exists() or kind == "SPIDER":  # of floats
            continue
        with Image.open(path) as image:
            assert (read(path, image_size=64) == picture_pixels(image, folder(image_size=64, channels=1))).all(), kind
        tried.append(kind)
    assert {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "TGA", "ICO", "PCX"} <= set(tried)


def test_only_endings_of_what_can_be_read_are_those_of_pictures():
    for name in ("a.JPG", "a.jpeg", "a.jfif", "a.png", "a.webp", "a.tif", "a.heic", "a.HIF", "a.avif", "a.bmp"):
        assert formats.is_picture_name(name)
    for name in ("a.h5", "a.mpg", "a.mp4", "a.pth", "a.yaml", "a", "jpg", ".jpg"):
        assert not formats.is_picture_name(name)


# --- metadata do not matter ---


def with_chunk(path, kind, content, checksum=None, last=False):
    whole = path.read_bytes()
    at = whole.index(b"IEND" if last else b"IDAT") - 4
    path.write_bytes(whole[:at] + png_chunk(kind, content, checksum) + whole[at:])


def long_text(path, last=False):
    with_chunk(path, b"zTXt", b"comment\0\0" + zlib.compress(bytes(5_000_000)), last=last)


def many_texts(path):
    text = zlib.compress(bytes(2**20 - 100))
    for number in range(70):
        with_chunk(path, b"zTXt", b"c%d\0\0" % number + text)


@pytest.mark.parametrize(
    "spoil",
    [
        long_text,
        lambda path: long_text(path, last=True),
        many_texts,
        lambda path: with_chunk(path, b"iCCP", b"icc\0\0" + zlib.compress(os.urandom(1_200_000))),
        lambda path: with_chunk(path, b"iCCP", b"icc\0\0" + b"no zlib"),
        lambda path: with_chunk(path, b"tEXt", b"comment\0text", checksum=1),
        lambda path: with_chunk(path, b"eXIf", b"neither MM nor II"),
        lambda path: with_chunk(path, b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(20)),
        lambda path: with_chunk(path, b"eXIf", b"II*\0", checksum=1),
        lambda path: with_chunk(path, b"pHYs", b"short"),
    ],
    ids=["text", "text at the end", "texts", "icc", "bad icc", "bad sum", "no exif", "bad exif", "exif sum", "size"],
)
def test_a_png_is_read_whatever_its_metadata_are(tmp_path, spoil):
    image = Image.fromarray(GREY)
    image.save(tmp_path / "p.png")
    spoil(tmp_path / "p.png")
    assert (read(tmp_path / "p.png") == expected()).all()


def test_the_orientation_is_honoured_beside_metadata_that_are_too_long(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(GREY[::-1, ::-1]).save(tmp_path / "p.png", exif=exif)
    long_text(tmp_path / "p.png")
    assert (read(tmp_path / "p.png") == expected()).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20), b"Exif\0\0nonsense", b"Exif\0\0"])
def test_a_jpeg_is_read_whatever_its_metadata_are(tmp_path, exif):
    Image.fromarray(GREY).save(tmp_path / "p.jpg", quality=100, exif=exif)
    assert np.abs(read(tmp_path / "p.jpg") - expected()).max() <= 3


def test_metadata_do_not_hide_damaged_pixels(tmp_path):
    Image.fromarray(smooth(60, 60).astype(np.uint8)).save(tmp_path / "p.png")
    long_text(tmp_path / "p.png")
    whole = bytearray((tmp_path / "p.png").read_bytes())
    at = whole.index(b"IDAT") + 30
    whole[at : at + 200] = b"\xff" * 200
    (tmp_path / "p.png").write_bytes(whole)
    with pytest.raises(UserError, match=r"p.png (is damaged|cannot be read)"):
        read(tmp_path / "p.png")


def test_pillow_s_own_limits_stay_as_they_are(tmp_path):
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    Image.fromarray(GREY).save(tmp_path / "p.png")
    long_text(tmp_path / "p.png")
    read(tmp_path / "p.png")
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


# --- phones ---


@pytest.fixture
def without_heif(monkeypatch):
    """Pillow as it is before anybody adds readers to it."""
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {kind: reader for kind, reader in Image.OPEN.items() if kind != "HEIF"})
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    return monkeypatch


def heic(path, orientation=None):
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(smooth(48, 64).astype(np.uint8))
    if orientation:
        image.getexif()[0x0112] = orientation
    pillow_heif.from_pillow(image).save(path, quality=90)
    return np.asarray(image)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg"])
def test_heic_is_read_where_pillow_heif_is_installed_whatever_its_ending(tmp_path, without_heif, name):
    pixels = heic(tmp_path / name)
    found = read(tmp_path / name, image_size=48, channels=3)
    assert np.abs(found - pixels[:, 8:56].transpose(2, 0, 1).astype(int)).mean() < 3


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.jpg"])
def test_without_pillow_heif_heic_is_refused_with_its_name(tmp_path, without_heif, name):
    heic(tmp_path / name)
    without_heif.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=rf"{name} is a picture in the format HEIC, .*: pip install pillow-heif has it"):
        read(tmp_path / name)


def test_heic_is_told_by_its_brands():
    for head, kind in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", None),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp41isom", None),
        (b"\xff\xd8\xff", None),
        (b"", None),
    ):
        assert formats.foreign_format(io.BytesIO(head)) == kind


# --- large JPEGs ---


@pytest.fixture
def drafts(monkeypatch):
    """The sizes at which JPEGs are decoded."""
    sizes = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def noted(self, mode, size):
        draft(self, mode, size)
        sizes.append(self.size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", noted)
    return sizes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, drafts, orientation, fit):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = smooth(480, 720).astype(np.uint8)
    pixels[:240, :240] = 255 - pixels[:240, :240]
    Image.fromarray(pixels).save(tmp_path / "p.jpg", quality=95, exif=exif)
    for channels in (1, 3):
        data = folder(image_size=20, channels=channels, fit=fit)
        with Image.open(tmp_path / "p.jpg") as image:
            whole = picture_pixels(image, data).astype(int)
        difference = np.abs(read_picture(tmp_path / "p.jpg", data) - whole)
        assert difference.mean() < 1 and difference.max() <= 6
    assert drafts == [(90, 60)] * 2


@pytest.mark.parametrize(("fit", "decoded"), [("crop", (500, 100)), ("pad", (125, 25))])
def test_it_is_the_side_that_is_kept_which_says_how_small(tmp_path, drafts, fit, decoded):
    Image.fromarray(smooth(200, 1000).astype(np.uint8)).save(tmp_path / "p.jpg")
    read_picture(tmp_path / "p.jpg", folder(image_size=20, fit=fit))
    assert drafts == [decoded]


def test_a_jpeg_that_is_not_much_larger_is_decoded_whole(tmp_path, drafts):
    pixels = smooth(80, 80).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.jpg", quality=95)
    with Image.open(tmp_path / "p.jpg") as image:
        whole = picture_pixels(image, folder(image_size=32))
    assert (read_picture(tmp_path / "p.jpg", folder(image_size=32)) == whole).all()
    assert all(size == (80, 80) for size in drafts)


def test_a_picture_that_was_opened_by_somebody_else_stays_as_it_is(tmp_path, drafts):
    Image.fromarray(smooth(480, 720).astype(np.uint8)).save(tmp_path / "p.jpg")
    with Image.open(tmp_path / "p.jpg") as image:
        picture_pixels(image, folder(image_size=20))
        assert image.size == (720, 480) and not drafts
