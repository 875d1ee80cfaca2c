"""A folder of colour classes that is no data set of the field: one icon, drawn by the makers of several icon themes.

    apt-get download PACKAGE ...; dpkg-deb -x PACKAGE.deb DIR; python -m benchmarks.icons --icons DIR --to FOLDER

A class is the name that the themes of Debian give an icon, such as `audio-x-generic` or `gimp`, and its pictures are
those of the makers who drew it, on white. Only files count, not the links by which one drawing has many names. A
maker's copy of another's drawing is left out, and so is a class that shows what a larger one shows: the same drawing
under two names. FOLDER/val and FOLDER/test hold classes of `FEWEST` pictures or more, FOLDER/train the others too.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from maml_l2l import commands
from maml_l2l.system.errors import UserError

SIDE = 128  # pixels
FEWEST, FEWEST_TRAIN = 6, 3  # pictures of a class: 5 shots and a query; what training makes use of
PACKAGES = (
    "papirus-icon-theme breeze-icon-theme oxygen-icon-theme faenza-icon-theme moka-icon-theme numix-icon-theme "
    "numix-icon-theme-circle elementary-xfce-icon-theme elementary-icon-theme gnome-icon-theme mate-icon-theme "
    "adwaita-icon-theme tango-icon-theme lxde-icon-theme gnome-icon-theme-nuovo gnome-icon-theme-gartoon "
    "gnome-icon-theme-yasis deepin-icon-theme"
)
# Each maker's themes, the first that has an icon gives it; below each theme, folders that hold no colour icons.
MAKERS = (
    ("Papirus",),
    ("breeze",),
    ("oxygen",),
    ("Faenza",),
    ("Moka",),
    ("Numix", "Numix-Circle"),
    ("elementary-xfce", "elementary"),
    ("gnome", "mate", "Adwaita"),
    ("Tango",),
    ("nuoveXT2", "Nuovo"),
    ("gartoon",),
    ("yasis",),
    ("bloom",),
    ("Vintage", "Sea"),
)
_SMALLEST = 48  # pixels; what is smaller is mostly drawn in one colour
_ALIKE = 2.0  # mean difference of two drawings at 16x16, of 255, below which they are one


def icon_files(theme: Path) -> dict[str, Path]:
    """The best file of each icon of a theme: the smallest raster of `SIDE` pixels or more, a vector, the largest."""
    best: dict[str, tuple[tuple[int, int], Path]] = {}
    for path in theme.rglob("*"):
        place = str(path.relative_to(theme))
        if path.is_symlink() or path.suffix not in (".png", ".svg") or re.search("symbolic|animations|@", place):
            continue
        numbers = re.findall(r"\d+", str(Path(place).parent))
        side = int(numbers[0]) if numbers else SIDE
        if side < _SMALLEST:
            continue
        raster = (0, side) if side >= SIDE else (2, -side)
        rank = (1, abs(side - SIDE)) if path.suffix == ".svg" else raster
        best[path.stem] = min(best.get(path.stem, (rank, path)), (rank, path))
    return {name: path for name, (_, path) in best.items()}


def picture(path: Path) -> Image.Image | None:
    """The icon on white, `SIDE` pixels wide; None where it is grey, empty or damaged."""
    try:
        if path.suffix == ".svg":
            size = ["-w", str(SIDE), "-h", str(SIDE)]
            rendered = subprocess.run(["rsvg-convert", *size, str(path)], capture_output=True, check=True, timeout=20)
            image = Image.open(io.BytesIO(rendered.stdout))
        else:
            image = Image.open(path)
        image = image.convert("RGBA")
    except (OSError, subprocess.SubprocessError):
        return None
    image.thumbnail((SIDE, SIDE))
    if image.width < SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    white = Image.new("RGBA", image.size, "white")
    shown = Image.alpha_composite(white, image).convert("RGB")
    pixels = np.asarray(shown, dtype=np.int16)
    coloured = (pixels.max(2) - pixels.min(2) > 30).mean()
    return shown if coloured > 0.02 and pixels.min() < 200 else None


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float32)


def drawings(root: Path) -> dict[str, list[tuple[str, Image.Image]]]:
    """For each icon that enough makers drew: (maker, picture), no picture twice."""
    files: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for themes in MAKERS:
        found: dict[str, Path] = {}
        for theme in themes:
            found = icon_files(root / theme) | found
        for name, path in found.items():
            files[name].append((themes[0], path))
    wanted = {name: drawn for name, drawn in files.items() if len(drawn) >= FEWEST_TRAIN}
    with ThreadPoolExecutor(2) as pool:
        paths = [path for drawn in wanted.values() for _, path in drawn]
        pictures = dict(zip(paths, pool.map(picture, paths), strict=True))
    classes = {}
    for name, drawn in wanted.items():
        kept: list[tuple[str, Image.Image]] = []
        for maker, path in drawn:
            image = pictures[path]
            if image is not None and all(np.abs(_small(image) - _small(one)).mean() > _ALIKE for _, one in kept):
                kept.append((maker, image))
        if len(kept) >= FEWEST_TRAIN:
            classes[name] = kept
    return classes


def different(classes: dict[str, list[tuple[str, Image.Image]]]) -> Iterator[str]:
    """The names of the classes, the largest first, that show nothing that another one before them shows."""
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    everything: set[bytes] = set()
    for name in sorted(classes, key=lambda name: (-len(classes[name]), name)):
        drawn = [(maker, _small(image)) for maker, image in classes[name]]
        exactly = {image.tobytes() for _, image in classes[name]}
        if exactly & everything or any(
            np.abs(np.stack(seen[m]) - image).mean((1, 2, 3)).min() <= _ALIKE for m, image in drawn if seen[m]
        ):
            continue
        everything |= exactly
        for maker, image in drawn:
            seen[maker].append(image)
        yield name


def part(name: str, pictures: int) -> str:
    """`train`, `val` or `test`, always the same for a name."""
    if pictures < FEWEST:
        return "train"
    share = zlib.crc32(name.encode()) % 10
    return "val" if share < 2 else "test" if share < 7 else "train"


def main() -> None:
    """Build the folder and say what is in it."""
    parser = argparse.ArgumentParser(description="Build a folder of colour classes from Debian's icon themes.")
    parser.add_argument("--icons", metavar="DIR", type=Path, default=Path("/"), help="where the packages are unpacked")
    parser.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="where the classes go")
    arguments = parser.parse_args()
    root = arguments.icons / "usr/share/icons"
    if sum((root / themes[0]).is_dir() for themes in MAKERS) < FEWEST:
        raise UserError(f"{root} holds too few icon themes: apt-get install {PACKAGES}")
    if shutil.which("rsvg-convert") is None:
        raise UserError("rsvg-convert, which draws SVG files, is not installed: apt-get install librsvg2-bin")
    if arguments.to.exists():
        raise UserError(f"{arguments.to} is there already. Remove it, or name another folder.")
    classes = drawings(root)
    kept = sorted(different(classes))
    for name in kept:
        folder = arguments.to / part(name, len(classes[name])) / name
        folder.mkdir(parents=True)
        for maker, image in classes[name]:
            image.save(folder / f"{maker.lower()}.png")
    parts = Counter(part(name, len(classes[name])) for name in kept)
    makers = Counter(maker for name in kept for maker, _ in classes[name])
    print(f"{len(kept)} classes ({dict(parts)}), {sum(makers.values())} pictures: {dict(makers.most_common())}")


if __name__ == "__main__":
    commands.run(main)
