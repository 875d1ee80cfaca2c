"""Names in a figure, which may hold any sign of any script."""

from __future__ import annotations

import functools
import re
from typing import Any

# A box for every sign, and fonts of formulas, whose signs have numbers of their own.
_NO_LETTERS = re.compile(r"Last Resort.*|cm(b|ex|mi|r|ss|sy|ti|tt)10|STIX(NonUnicode|Size.*)")


def draw_as_written(figure: Any) -> None:
    """Have every text of a figure drawn as it is, never as markup, whatever the user's settings of matplotlib are.

    Signs that its font lacks come from other installed fonts; where none has them, they become escapes as in Python.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
        families = text.get_fontfamily()
        more, absent = _families_for("".join(sorted(set(text.get_text()))), tuple(families))
        if more:
            text.set_fontfamily([*families, *more])
        if absent:
            shown = (sign.encode("unicode_escape").decode() if sign in absent else sign for sign in text.get_text())
            text.set_text("".join(shown))


@functools.cache
def _families_for(signs: str, families: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The font families that have what those of `families` lack of `signs`, as few as possible; what none has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    missing = {sign for sign in signs if not sign.isspace()} - _known(
        findfont(FontProperties(family=list(families))), signs
    )
    more = []
    for font in sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.name)):
        if not missing:
            break
        if not _NO_LETTERS.fullmatch(font.name) and (found := missing & _known(font.fname, signs)):
            more.append(font.name)
            missing -= found
    return tuple(more), "".join(sorted(missing))


def _known(path: str, signs: str) -> set[str]:
    """Those of `signs` that the font file `path` has."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # no longer there, or damaged
        return set()
    return {sign for sign in signs if font.get_char_index(ord(sign))}
