"""The page of `python -m maml_l2l.draw` in a browser: how many drawings it names rightly, and how soon.

    python -m benchmarks.draw_page [--model CHECKPOINT] [--rounds N] [--json FILE] [--plot FILE]

It needs Playwright (`pip install playwright`) and Chromium or Chrome. A program's hand draws five signs on the page by
real pointer events, one drawing of each, then 25 others of them, five of each: with other proportions, tilts, sizes and
places, and an unsteady pen. Each round draws everything anew.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.hand_signs import arc, by_hand
from maml_l2l import commands
from maml_l2l.page.networks import find_networks
from maml_l2l.page.server import listening
from maml_l2l.pretrained import DEFAULT
from maml_l2l.system.errors import UserError
from maml_l2l.system.files import check_outputs
from maml_l2l.system.machine import machine

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_OPTIONS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
_QUERIES = 5  # of each sign


def _boat(rng: np.random.Generator) -> list:
    mast, top, deck = rng.uniform(-0.25, 0.15), rng.uniform(-1, -0.8), rng.uniform(0.3, 0.5)
    hull = [(-1, deck), (-0.6, 0.9), (rng.uniform(0.45, 0.7), 0.9), (1, deck), (-1, deck)]
    return [hull, [(mast, deck), (mast, top)], [(mast, top), (rng.uniform(0.6, 0.9), 0.1), (mast, 0.15)]]


def _cup(rng: np.random.Generator) -> list:
    side, bottom = rng.uniform(0.5, 0.65), rng.uniform(0.65, 0.95)
    body = [(-side, -0.7), (-0.8 * side, bottom), (0.8 * side, bottom), (side, -0.7), (-side, -0.7)]
    return [body, arc(side - 0.05, rng.uniform(-0.1, 0.1), rng.uniform(0.3, 0.4), -80, 80)]


def _flower(rng: np.random.Generator) -> list:
    turn, count = rng.uniform(0, 90), rng.integers(5, 7)
    angles = np.deg2rad(turn + 360 / count * np.arange(count))
    petal = arc(0.42, 0, 0.2, -150, 150)
    petals = [petal @ [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]] + [0, -0.4] for a in angles]
    return [arc(0, -0.4, 0.2, 0, 365), *petals, [(0, 0.2), (rng.uniform(-0.15, 0.15), 1)]]


def _key(rng: np.random.Generator) -> list:
    bow, teeth = rng.uniform(0.28, 0.42), rng.uniform(0.25, 0.4, 2)
    shaft = [(2 * bow - 1, 0), (1, 0)]
    return [arc(bow - 1, 0, bow, 0, 365), shaft, [(0.95, 0), (0.95, teeth[0])], [(0.6, 0), (0.6, teeth[1])]]


def _tree(rng: np.random.Generator) -> list:
    crown, trunk = rng.uniform(0.5, 0.62), rng.uniform(0.08, 0.15)
    round_crown = arc(0, crown - 1, crown, 90, 455) * [rng.uniform(1, 1.25), 1]
    foot = 2 * crown - 1
    return [round_crown, [(-trunk, foot), (-trunk, 1)], [(trunk, foot), (trunk, 1)], [(-0.5, 1), (0.5, 1)]]


SIGNS: dict[str, Callable[[np.random.Generator], list]] = {
    "boat": _boat,
    "cup": _cup,
    "flower": _flower,
    "key": _key,
    "tree": _tree,
}


def strokes_of(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """One drawing of a sign: strokes of points (x, y) from 0 to 1, y down."""
    paths = by_hand(SIGNS[name](rng), 12, rng)
    everything = np.concatenate(paths)
    low, high = everything.min(0), everything.max(0)
    size = rng.uniform(0.5, 0.85)
    middle = 0.5 + rng.uniform(-1, 1, 2) * (1 - size) / 2 * 0.8
    return [(path[::2] - (low + high) / 2) * size / (high - low).max() + middle for path in paths]


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless browser of Playwright's. Raises `UserError` where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError(
            "the browser is driven by Playwright, which is not installed: pip install playwright."
        ) from None
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(f"none of the browsers {', '.join(BROWSERS)} is installed. Install one.")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


def answered(page: Any) -> None:
    """Wait until the page shows the answer to what was drawn last."""
    page.wait_for_selector("#answer[aria-busy=false]")


def draw(page: Any, field: Any, strokes: Any) -> None:
    """Draw `strokes` of points from 0 to 1 on a field with the mouse, and wait for the answer."""
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    for (x, y), *others in strokes:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.down()
        for x, y in others:
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.up()
    answered(page)


def _round(page: Any, rng: np.random.Generator) -> tuple[dict[str, int], list[float], list[float]]:
    """How many queries of each sign are named rightly; milliseconds of the answers to them, and to changed signs."""
    page.click("#empty")
    for _ in range(len(SIGNS) - 3):
        page.get_by_role("button", name="+ Sign").click()
    fields = [page.locator(".class").nth(index).locator("canvas") for index in range(len(SIGNS))]
    for index, name in enumerate(SIGNS):
        page.locator(".name").nth(index).fill(name)
        draw(page, fields[index], strokes_of(name, rng))
    right, naming, learning = dict.fromkeys(SIGNS, 0), [], []
    for name in SIGNS:
        for _ in range(_QUERIES):
            page.click("#another")
            draw(page, page.locator("#query"), strokes_of(name, rng))
            naming.append(_milliseconds(page, -1))
            right[name] += page.inner_text("#verdict").split("\n")[0] == name
    for field in fields:
        page.evaluate("performance.clearResourceTimings()")
        draw(page, field, [[(0.5, 0.5), (0.52, 0.52)]])
        learning.append(_milliseconds(page, 0))
    return right, naming, learning


def _milliseconds(page: Any, number: int) -> float:
    """From a question of the page, the first (0) or the last (-1), to the end of its answer, as the browser has it."""
    entries = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('api/answer'))"
    return page.evaluate(f"{entries}.at({number}).duration")


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times)), "largest": round(max(times))}


def main() -> None:
    """Draw, count, print."""
    parser = common.parser("How many drawings the page of maml_l2l.draw names rightly, and how soon it answers.")
    parser.add_argument("--model", default=DEFAULT, help=f"a .pth file, or a name in pretrained/ (default: {DEFAULT})")
    parser.add_argument("--rounds", type=int, default=4, help="times that everything is drawn anew (default: 4)")
    arguments = parser.parse_args()
    check_outputs([arguments.json, arguments.plot])
    rounds, naming, learning = [], [], []
    with listening(find_networks(arguments.model), "127.0.0.1", 0) as address, open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(address)
        answered(page)
        for seed in range(arguments.rounds):
            right, times_of_queries, times_of_signs = _round(page, np.random.default_rng(seed))
            print(f"round {seed}: {sum(right.values())} of {_QUERIES * len(SIGNS)} named rightly  {right}")
            rounds.append(right)
            naming += times_of_queries
            learning += times_of_signs
        if arguments.plot:
            page.screenshot(path=arguments.plot, full_page=True)
    times = {"another drawing to name": _summary(naming), "a sign changed": _summary(learning)}
    for what, summary in times.items():
        print(f"{what}: answered in {summary['median']} ms (median), {summary['largest']} ms at most")
    content = {"model": arguments.model, "queries": _QUERIES * len(SIGNS), "right": rounds, "milliseconds": times}
    common.write_json(arguments.json, content | {"machine": machine()})


if __name__ == "__main__":
    commands.run(main)
