"""The page on which a network learns signs, in a browser, with real pointer events, keys and files."""

import base64
import contextlib
import io
import zipfile

import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("playwright")

from playwright.sync_api import expect

from benchmarks.draw_page import answered, draw, open_browser
from maml_l2l.data.class_folders import support_pictures
from maml_l2l.page.networks import find_networks
from maml_l2l.page.server import listening
from maml_l2l.system.errors import UserError
from tests.commands import ROOT

SAMPLES = ROOT / "examples" / "drawings"
HOSTILE = "<img src=x onerror=alert(1)>"

# Strokes from 0 to 1: two of a cross and one of a hook, twice.
CROSS = [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)]]
OTHER_CROSS = [[(0.3, 0.25), (0.72, 0.7)], [(0.75, 0.3), (0.25, 0.74)]]
HOOK = [[(0.3, 0.2), (0.3, 0.8), (0.7, 0.8)]]


@pytest.fixture(scope="module")
def browser():
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(open_browser())
        except UserError as error:
            pytest.skip(str(error))
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with listening(find_networks("drawings", tmp_path_factory.mktemp("no runs")), "127.0.0.1", 0) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """`visit(**options)` opens the page in a new window and waits for its first answer; nothing may go wrong in it."""
    problems, contexts = [], []

    def visit(**options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text) if is_problem(message) else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
        page.goto(address)
        answered(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def is_problem(message):
    """A refused file is none, though the browser says so, too."""
    return message.type == "error" and "status of 422" not in message.text


def verdict(page):
    return page.inner_text("#verdict").split("\n")[0]


def bars(page):
    """(name, probability or what is said instead) of each sign."""
    # One call: between a locator's two, the page may have drawn its bars anew.
    texts = "rows => rows.map((row) => [...row.children].map((part) => part.innerText))"
    return [tuple(filter(None, row)) for row in page.locator("#bars li").evaluate_all(texts)]


def field(page, sign, number=0):
    return page.locator(".class").nth(sign).locator("canvas").nth(number)


def two_signs(page):
    page.click("#empty")
    draw(page, field(page, 0), CROSS)
    draw(page, field(page, 1), HOOK)


def ink_of(picture):
    """How many of its pixels are dark."""
    return sum(picture.convert("L").histogram()[:128])


def ink(page):
    """How many pixels of the large field are dark."""
    return page.evaluate(
        "() => { const c = document.getElementById('query');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        "for (let i = 0; i < d.length; i += 4) n += d[i] < 128; return n; }"
    )


def test_it_opens_with_an_answer_and_learns_what_is_drawn(visit):
    page = visit()
    assert verdict(page) == "fish"
    assert [name for name, _ in bars(page)] == ["fish", "house", "snail", "star", "umbrella"]
    expect(page.locator("#queries .named")).to_have_count(15)
    named = page.locator("#queries .named").all_inner_texts()
    assert named == [path.stem.rstrip("123") for path in sorted((SAMPLES / "queries").glob("*.png"))]

    page.click("#empty")
    answered(page)
    assert "Draw two signs or more" in page.inner_text("#problem")
    draw(page, field(page, 0), CROSS)
    draw(page, field(page, 1), HOOK)
    assert page.inner_text("#problem") == ""
    draw(page, page.locator("#query"), OTHER_CROSS)
    assert verdict(page) == "sign 1"
    assert bars(page)[2] == ("sign 3", "no drawing yet")
    assert sum(float(share.split()[0]) for _, share in bars(page)[:2]) == pytest.approx(100, abs=0.11)
    assert page.is_visible("#seen")
    assert "as the mean of each one's pictures" in page.inner_text("#story")
    assert page.inner_text("header p").endswith("Draw one of them again, and see which it finds.")
    page.select_option("#network", "omniglot_5w1s_meta_curvature")
    answered(page)
    assert page.inner_text("header p").endswith("Draw one of them again, and watch it learn.")
    assert "After one gradient step: sign 1" in page.inner_text("#story")
    assert page.locator("#chart-probability polyline").count() == 2
    assert page.locator("#chart-loss circle").count() == 2

    drawn = ink(page)
    draw(page, page.locator("#query"), [[(0.5, 0.1)]])
    assert ink(page) > drawn + 300
    page.click("#undo")
    assert ink(page) == drawn
    page.click("#undo")
    assert 0 < ink(page) < drawn
    page.click("#clear")
    assert ink(page) == 0
    assert "Draw one of your signs" in page.inner_text("#verdict")
    page.click("#undo")
    assert 0 < ink(page) < drawn
    answered(page)


def test_signs_and_drawings_are_added_named_and_removed(visit):
    page = visit()
    two_signs(page)
    for index, name in enumerate(("cross", "hook")):
        page.locator(".name").nth(index).click()
        page.keyboard.press("Control+a")
        page.keyboard.type(name)
    assert [name for name, *_ in bars(page)] == ["cross", "hook", "sign 3"]
    page.get_by_role("button", name="+ Sign").click()
    page.keyboard.type(HOSTILE)
    page.keyboard.press("Tab")
    assert bars(page)[3][0] == HOSTILE
    page.get_by_role("button", name=f"Add a drawing of {HOSTILE}").click()
    draw(page, field(page, 3, 1), [[(0.1, 0.5), (0.9, 0.5)]])
    draw(page, page.locator("#query"), [[(0.2, 0.45), (0.9, 0.5)]])
    assert verdict(page) == HOSTILE
    assert page.locator("img[src=x]").count() == 0
    page.get_by_role("button", name=f"Remove {HOSTILE}", exact=True).click()
    answered(page)
    assert len(bars(page)) == 3
    page.click("#restore")
    answered(page)
    assert bars(page)[3][0] == HOSTILE and verdict(page) == HOSTILE


def test_what_was_drawn_is_there_after_loading_the_page_anew(visit):
    page = visit()
    two_signs(page)
    draw(page, page.locator("#query"), OTHER_CROSS)
    page.select_option("#network", "omniglot_5w1s_meta_curvature")
    answered(page)
    before = bars(page), ink(page)
    page.reload()
    answered(page)
    assert (bars(page), ink(page)) == before
    assert page.input_value("#network") == "omniglot_5w1s_meta_curvature"
    page.click("#samples")
    expect(page.locator("#bars li")).to_have_count(5)
    answered(page)
    assert verdict(page) == "fish"


def test_the_last_question_is_answered_whatever_was_asked_before(visit):
    page = visit()
    asked = []
    page.route("**/api/answer", lambda route: asked.append(route))
    for index in (4, 9, 12):  # house, star, umbrella
        with page.expect_request("**/api/answer"):
            page.locator("#queries button").nth(index).click()
        page.wait_for_timeout(50)
    assert len(asked) == 3
    asked[2].continue_()
    answered(page)
    assert verdict(page) == "umbrella"
    for route in asked[:2]:
        assert route.request.failure == "net::ERR_ABORTED"


def test_an_answer_that_comes_while_a_stroke_is_drawn_does_not_cut_it(visit):
    page = visit()
    two_signs(page)
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "answer" in request.url else None)
    draw(page, page.locator("#query"), [[(0.2, 0.2), (0.3, 0.3)]])
    box = page.locator("#query").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 300)
    page.mouse.down()
    page.locator(".name").first.dispatch_event("input")  # shows everything, as an answer does
    page.mouse.move(box["x"] + 300, box["y"] + 50, steps=5)
    page.mouse.up()
    answered(page)
    before, after = (Image.open(io.BytesIO(base64.b64decode(one["queries"][0]))) for one in (sent[0], sent[-1]))
    assert ink_of(after) > 3 * ink_of(before)


def test_a_drawing_that_was_changed_and_left_at_once_is_asked_again(visit):
    page = visit()
    draw(page, page.locator("#query"), CROSS)
    answered(page)
    expect(page.locator("#queries")).not_to_contain_text("…")  # nor is any other waiting
    page.wait_for_timeout(500)
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "answer" in request.url else None)
    page.evaluate(
        "() => { document.getElementById('undo').click(); document.querySelectorAll('#queries button')[3].click(); }"
    )
    page.wait_for_timeout(1500)
    answered(page)
    assert [len(one["queries"]) for one in sent] == [1, 1]


def drop(page, selector, *files):
    """Drop (name, content) on what `selector` finds."""
    given = [(name, list(content)) for name, content in files]
    transfer = page.evaluate_handle(
        "files => { const t = new DataTransfer();"
        "for (const [name, bytes] of files) t.items.add(new File([new Uint8Array(bytes)], name)); return t; }",
        given,
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def test_files_folders_and_archives_come_in_and_go_out(visit, tmp_path):
    page = visit()
    star = (SAMPLES / "queries" / "star2.png").read_bytes()
    drop(page, "#query", ("a.png", star))
    expect(page.locator("#queries li")).to_have_count(16)
    answered(page)
    assert verdict(page) == "star"

    drop(page, ".class >> nth=3", ("b.png", star))
    page.wait_for_selector(".class >> nth=3 >> canvas >> nth=1")
    drop(page, "#query", (f"{HOSTILE}.png", b"no picture"))
    page.wait_for_selector("#notice:has-text('is not a picture')")
    assert f"{HOSTILE}.png is not a picture" in page.inner_text("#notice")
    assert page.locator("img[src=x]").count() == 0

    with page.expect_download() as download:
        page.click("#save")
    archive = zipfile.ZipFile(download.value.path())
    archive.extractall(tmp_path / "support")
    paths, labels = support_pictures(tmp_path / "support")
    assert labels == ["fish", "house", "snail", "star", "star", "umbrella"]
    assert Image.open(paths[0]).tobytes() == Image.open(SAMPLES / "support/fish/1.png").tobytes()

    page.click("#empty")
    drop(page, "body", ("signs.zip", download.value.path().read_bytes()))
    page.wait_for_selector("#notice:has-text('Read: 5 signs, 6 pictures')")
    assert page.locator(".class canvas").count() == 6
    with page.expect_file_chooser() as chooser:
        page.click("#open-folder")
    chooser.value.set_files(SAMPLES / "support")
    page.wait_for_selector("#notice:has-text('Read: 5 signs, 5 pictures')")
    answered(page)
    assert [name for name, *_ in bars(page)] == ["fish", "house", "snail", "star", "umbrella"]
    file = io.BytesIO()
    Image.new("L", (90, 90), 255).save(file, "PNG")
    drop(page, "#query", ("empty.png", file.getvalue()))
    page.wait_for_selector("#problem:has-text('shows no ink. The network sees nothing')")


def test_a_narrow_window_takes_touches(visit):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("#empty")
    touch = page.context.new_cdp_session(page)
    for canvas, strokes in ((field(page, 0), CROSS), (field(page, 1), HOOK), (page.locator("#query"), OTHER_CROSS)):
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for stroke in strokes:
            kinds = ["touchStart"] + ["touchMove"] * (len(stroke) - 1)
            for kind, (x, y) in zip(kinds, stroke, strict=True):
                point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
                touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
            touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    answered(page)
    assert verdict(page) == "sign 1"
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_the_keyboard_is_enough(visit):
    page = visit()
    labels = "[...document.querySelectorAll('button, input, select, canvas')].filter(n => n.offsetParent)"
    unnamed = f"{labels}.filter(n => !(n.innerText || n.ariaLabel || n.labels?.length)).length"
    assert page.evaluate(unnamed) == 0

    def reach(selector):
        for _ in range(60):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached")

    reach("#empty")
    press(page, "Enter")
    reach("[aria-label='Draw: drawing 1 of sign 1']")
    assert page.is_visible("#keys")
    press(page, "Space", *["ArrowRight"] * 9, *["ArrowDown"] * 9, "Space")
    reach("[aria-label='Draw: drawing 1 of sign 2']")
    press(page, "Space", *["ArrowUp"] * 9, "Space")
    reach("#query")
    press(page, "ArrowLeft", "Space", *["ArrowRight"] * 8, *["ArrowDown"] * 8, "Space")
    expect(page.locator("#verdict")).to_contain_text("sign 1")
    press(page, "Control+z")
    assert page.evaluate("document.activeElement.id") == "query"
    answered(page)
    assert "Draw one of your signs" in page.inner_text("#verdict")
