"""The preprocessing of Finn et al.'s original MAML code for drawings of ink on paper."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIZE = 28


def ink_pixels(image: Image.Image) -> np.ndarray:
    """Return a drawing as (28, 28) uint8 with ink = 255 and paper = 0.

    `image` is black ink on white paper of any size (Omniglot: 105x105, 1-bit); where it is not in mode "1" it
    is converted, at the threshold of middle grey. The resizing is that of Finn et al. (2017): LANCZOS
    asked for in mode "1", where Pillow takes the nearest pixel instead; pixels stay black or white.
    """
    if image.mode != "1":
        image = image.convert("L").convert("1", dither=Image.Dither.NONE)
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.where(np.asarray(image), 0, 255).astype(np.uint8)
