"""The page on which a network learns signs: what its server answers, and whom it refuses."""

import base64
import dataclasses
import io
import json
import os
import signal
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from maml_l2l.algorithms import build_learner
from maml_l2l.checkpoints.checkpoint import load_pretrained, save_checkpoint
from maml_l2l.config import with_overrides
from maml_l2l.data.class_folders import support_pictures
from maml_l2l.page import app, learning, pictures, server
from maml_l2l.page.guard import Guard
from maml_l2l.page.learning import Answers
from maml_l2l.page.networks import find_networks
from maml_l2l.page.server import listening
from maml_l2l.prediction import FewShotClassifier
from maml_l2l.system.errors import MissingPackage, UserError
from tests.commands import ROOT, assert_user_error, run, started

HOST = "127.0.0.1:8400"
SUPPORT = sorted((ROOT / "examples/drawings/support").glob("*/*.png"))
QUERIES = sorted((ROOT / "examples/drawings/queries").glob("*.png"))[:4]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return find_networks("drawings", runs=tmp_path_factory.mktemp("no runs"))


@pytest.fixture(scope="module")
def client(networks):
    return TestClient(Guard(app.page_app(networks), {HOST}), base_url=f"http://{HOST}")


def coded(path):
    return base64.b64encode(path.read_bytes()).decode()


def question(queries=(), network="drawings", support=SUPPORT):
    support = [[coded(path)] for path in support]
    return {"network": network, "support": support, "queries": [coded(path) for path in queries]}


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture_of(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def refused(response, status, message):
    """One sentence that holds `message`, as JSON."""
    assert response.status_code == status, response.text
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"] and "Traceback" not in response.text


def raw(client, content, path="answer", kind="application/json", **options):
    return client.post(f"/api/{path}", content=content, headers={"Content-Type": kind}, **options)


# --- what it answers ---


@pytest.mark.parametrize(("network", "steps"), [("drawings", 0), ("omniglot_5w1s_meta_curvature", 1)])
def test_an_answer_is_the_classifiers_after_every_number_of_steps(client, network, steps):
    found = client.post("/api/answer", json=question(QUERIES, network)).json()
    labels = [path.parent.name for path in SUPPORT]
    classifier = FewShotClassifier(network).fit(SUPPORT, labels)
    np.testing.assert_allclose(
        [query["probabilities"] for query in found["queries"]],
        classifier.predict_proba_by_step(QUERIES).swapaxes(0, 1),
        atol=1e-5,
    )
    own = classifier.predict_proba_by_step(SUPPORT)[:, range(5), range(5)]
    np.testing.assert_allclose(found["loss"], -np.log(own).mean(1), atol=1e-5)
    assert len(found["loss"]) == len(found["queries"][0]["probabilities"]) == steps + 1
    for part, paths in (("support", SUPPORT), ("queries", QUERIES)):
        assert [one["problem"] for one in found[part]] == [None] * len(paths)
        for one, pixels in zip(found[part], classifier.pixels(paths), strict=True):
            assert np.array_equal(np.asarray(picture_of(one["seen"])), pixels[0])


@pytest.mark.parametrize("steps", [0, 2])
def test_a_network_for_photographs_takes_photographs(tmp_path, steps):
    checkpoint = load_pretrained("omniglot_5w5s")
    folder = {
        "data.name": "folder",
        "data.channels": 3,
        "data.image_size": 32,
        "data.invert": False,
        "model.filters": 4,
    }
    algorithm = {
        "algorithm.learn_inner_lr": False,
        "algorithm.update": "sgd",
        "algorithm.head": "prototype",
        "algorithm.inner_steps": steps,
    }
    experiment = with_overrides(checkpoint.experiment, {**folder, **algorithm}, "the test")
    backbone = {**checkpoint.backbone, "channels": 3, "filters": 4}
    weights = build_learner(experiment.algorithm, backbone).module.state_dict()
    changed = {"config": experiment.model_dump(), "backbone": backbone, "weights": weights}
    mine = dataclasses.replace(checkpoint, **changed, inner_lrs=None, transform=None)
    save_checkpoint(mine, tmp_path / "mine.pth")
    networks = find_networks(str(tmp_path / "mine.pth"), tmp_path)
    assert not networks[str(tmp_path / "mine.pth")].drawings
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / f"{name}.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    asked = json.dumps(question(files, str(tmp_path / "mine.pth"), files))
    found = Answers(networks).answer(learning.Question.model_validate_json(asked))
    classifier = FewShotClassifier(tmp_path / "mine.pth").fit(files, ["a", "b"])
    assert len(found["loss"]) == len(found["queries"][0]["probabilities"]) == steps + 1
    np.testing.assert_allclose([one["probabilities"][-1] for one in found["queries"]], classifier.predict_proba(files))
    seen = np.stack([np.asarray(picture_of(one["seen"])).transpose(2, 0, 1) for one in found["queries"]])
    assert np.array_equal(seen, classifier.pixels(files)) and seen.shape == (2, 3, 32, 32)


def test_what_is_wrong_with_a_drawing_is_said(client, tmp_path):
    Image.new("L", (200, 200), 255).save(tmp_path / "empty.png")
    asked = question([tmp_path / "empty.png"], support=[*SUPPORT[:2], tmp_path / "empty.png"])
    found = client.post("/api/answer", json=asked).json()
    assert [one["problem"] for one in found["support"]] == [None, None, "shows no ink"]
    assert found["queries"][0]["problem"] == "shows no ink"


def test_a_support_set_is_learned_once_and_the_last_ones_are_kept(networks, monkeypatch):
    fits = []
    monkeypatch.setattr(learning, "_KEPT", 2)
    monkeypatch.setattr(
        FewShotClassifier, "fit", lambda self, *given, fit=FewShotClassifier.fit: fits.append(1) or fit(self, *given)
    )
    answers = Answers(networks)

    def ask(*support, queries=()):
        asked = json.dumps(question(queries, support=support))
        return answers.answer(learning.Question.model_validate_json(asked))

    first = ask(*SUPPORT[:2])
    assert ask(*SUPPORT[:2], queries=QUERIES[:1])["support"] == first["support"]
    assert len(fits) == 1
    ask(*SUPPORT[2:4])
    ask(*SUPPORT[:2])
    assert len(fits) == 2
    ask(*SUPPORT[1:3])
    ask(*SUPPORT[:2])
    assert len(fits) == 3
    ask(*SUPPORT[2:4])
    assert len(fits) == 4


def test_the_page_starts_with_the_samples_and_the_networks_named_at_the_start(client):
    start = client.get("/api/start").json()
    assert [one["path"] for one in start["support"]] == [f"{path.parent.name}/1.png" for path in SUPPORT]
    assert len(start["queries"]) == 15
    assert all(picture_of(one["picture"]).size == (210, 210) for one in start["support"] + start["queries"])
    assert next(iter(start["networks"])) == "drawings"
    assert start["networks"]["drawings"] == {"ways": None, "steps": 0, "drawings": True, "prototype": True}
    assert start["networks"]["omniglot_5w1s_meta_curvature"]["ways"] == 5


def test_networks_of_runs_are_offered_and_broken_ones_are_left_out(tmp_path, caplog):
    for name, content in (("mine", (ROOT / "pretrained/drawings.pth").read_bytes()), ("broken", b"x")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "best.pth").write_bytes(content)
    mine = tmp_path / "runs/mine/best.pth"
    found = find_networks("omniglot_5w1s", tmp_path / "runs")
    assert next(iter(found)) == "omniglot_5w1s_meta_curvature"
    assert found[str(mine)].prototype and len(found) == 1 + len(list(ROOT.glob("pretrained/*.pth")))
    assert f"the page does without {tmp_path / 'runs/broken/best.pth'}" in caplog.text
    assert next(iter(find_networks(str(mine), tmp_path / "runs"))) == str(mine)
    with pytest.raises(UserError, match="there is no checkpoint"):
        find_networks("none.pth")


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/icon.svg"])
def test_the_pages_files_load_nothing_from_elsewhere(client, path):
    response = client.get(path)
    assert response.status_code == 200
    assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    if path == "/page.js":
        assert not any(word in response.text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval("))


# --- pictures and archives ---


def test_a_picture_is_turned_and_made_small(client):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture = Image.new("RGB", (1200, 300), (200, 40, 40))
    response = raw(client, file_of(picture, "JPEG", exif=exif), "picture?name=a.jpg", "application/octet-stream")
    small = picture_of(response.json()["picture"])
    assert (small.format, small.size) == ("JPEG", (128, 512))
    for image, mode in (
        (Image.new("RGBA", (20, 30), (0, 0, 0, 0)), "RGBA"),
        (Image.fromarray(np.full((30, 20), 40_000, np.uint16)), "L"),
        (Image.new("P", (600, 20), 3), "RGB"),
        (Image.new("1", (20, 30), 1), "1"),
    ):
        small = picture_of(raw(client, file_of(image), "picture", "application/octet-stream").json()["picture"])
        assert (small.mode, small.format, max(small.size)) == (mode, "PNG", min(max(image.size), 512))
    tiff = file_of(Image.new("CMYK", (20, 30)), "TIFF")
    assert raw(client, tiff, "picture", "application/octet-stream").status_code == 200


def test_a_support_set_becomes_a_zip_that_predict_takes_and_comes_back(client, tmp_path):
    names = [
        "fish",
        "../a/b",
        "con",
        "train",
        "test",
        ".",
        "a_b",
        "FISH",
        "lost+found",
        "<img onerror=alert(1)>",
        "é" * 90,
    ]
    classes = [{"name": name, "pictures": [coded(path) for path in SUPPORT[:2]]} for name in names]
    response = client.post("/api/zip", json={"classes": classes})
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    archive.extractall(tmp_path)
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert len(folders) == len(names)
    assert {"fish", "FISH 2", "con_", "train_", "test_", "lost+found_", "_img onerror=alert(1)_"} <= set(folders)
    paths, labels = support_pictures(tmp_path)
    assert sorted(set(labels)) == folders
    assert {Path(path).read_bytes() for path in paths} == {path.read_bytes() for path in SUPPORT[:2]}
    back = raw(client, response.content, "unzip", "application/zip").json()["files"]
    assert [one["path"] for one in back] == archive.namelist()
    assert np.array_equal(np.asarray(picture_of(back[0]["picture"])), np.asarray(Image.open(SUPPORT[0])))


def zipped(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_an_archive_is_read_as_predict_reads_its_folder(client):
    content = zipped(
        **{"a/1.png": SUPPORT[0].read_bytes(), "b/1.png": SUPPORT[1].read_bytes(), "../../c/1.png": b"x"},
        **{"a/notes.txt": b"x", "__MACOSX/a/1.png": b"x", "a/.hidden.png": b"x", "a/@eaDir/1.png": b"x"},
    )
    found = raw(client, content, "unzip", "application/zip").json()["files"]
    assert [one["path"] for one in found] == ["a/1.png", "b/1.png"]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# Refused by its size; what follows is not decoded.
HEADER = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", HEADER) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 no zip", "this is no zip archive that can be read"),
        (zipped(), "the archive holds no pictures"),
        (zipped(**{"a/1.png": b"x"}), "a/1.png is not a picture that Pillow can read"),
        (zipped(**{f"a/{i}.png": b"" for i in range(201)}), "the archive holds 201 files; the page takes 200"),
        (zipped(**{"a/1.png": bytes(2**25 + 1)}), "unpacks to more than 128 MiB"),
        (zipped(**{"a/1.png": BOMB}), "the picture a/1.png is too large"),
    ],
    ids=["no archive", "empty", "no picture", "many", "large", "bomb"],
)
def test_a_hostile_archive_is_refused(client, content, message):
    refused(raw(client, content, "unzip", "application/zip"), 422, message)


def test_an_archive_that_unpacks_to_too_much_in_all_is_refused(client, monkeypatch):
    content = zipped(**{"a/1.png": SUPPORT[0].read_bytes(), "b/1.png": SUPPORT[1].read_bytes()})
    monkeypatch.setattr(pictures, "_MOST_UNPACKED", 3000)
    refused(raw(client, content, "unzip", "application/zip"), 422, "the archive unpacks to more than")


# --- what is asked wrongly ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "/etc/passwd"}, "there is no such network on this page"),
        ({"network": str(ROOT / "pretrained/drawings.pth")}, "there is no such network on this page"),
        ({"network": 3}, "network: Input should be a valid string"),
        ({"support": []}, "support: List should have at least 2 items"),
        ({"support": [[coded(SUPPORT[0])], []]}, "a class has no drawing"),
        ({"support": [[coded(SUPPORT[0])]] * 51}, "support: List should have at most 50 items"),
        ({"support": [["AAAA"] * 150] * 2}, "these are 300 pictures to learn from; the page takes 200"),
        ({"support": [["AAAA"], ["AAAA"]]}, "picture 1 is not a picture that Pillow can read"),
        ({"support": [["AAA"], ["AAAA"]]}, "support.0.0: "),
        ({"queries": ["AAAA"]}, "query 1 is not a picture that Pillow can read"),
        ({"queries": [coded(QUERIES[0])] * 51}, "queries: List should have at most 50 items"),
        ({"queries": [base64.b64encode(BOMB).decode()]}, "query 1 is too large"),
        ({"queries": ["A" * 2**22]}, "queries.0: "),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_question_is_refused_with_one_sentence(client, change, message):
    refused(client.post("/api/answer", json=question(QUERIES[:1], support=SUPPORT[:2]) | change), 422, message)


def test_more_classes_than_the_network_takes_are_refused(client):
    asked = question([], "omniglot_5w1s_meta_curvature", [*SUPPORT, QUERIES[0]])
    refused(client.post("/api/answer", json=asked), 422, "serves tasks of up to 5 classes, not of 6")


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000, b"null", b'{"network": "\\ud800"}'])
def test_what_is_no_json_is_refused(client, content):
    assert raw(client, content).status_code == 422
    assert "Traceback" not in raw(client, content).text


def test_pictures_that_are_none_are_refused_under_their_name(client):
    name = "picture?name=%3Cimg%20onerror%3E%0A.png"
    refused(raw(client, b"x", name, "application/octet-stream"), 422, "<img onerror> .png is not a picture")
    refused(raw(client, BOMB, "picture", "application/octet-stream"), 422, "file is too large")
    truncated = file_of(Image.effect_noise((90, 90), 50))[:999]
    refused(raw(client, truncated, "picture", "application/octet-stream"), 422, "the picture file cannot be read")


def test_other_types_methods_paths_and_sizes_are_refused(client, monkeypatch):
    refused(raw(client, b"{}", kind="text/plain"), 415, "expected a request of type application/json")
    refused(raw(client, b"", "picture", "multipart/form-data"), 415, "expected a request of type application/octet")
    refused(client.get("/api/answer"), 405, "Method Not Allowed")
    refused(client.get("/../pretrained/drawings.pth"), 404, "Not Found")
    monkeypatch.setattr(app, "MOST_BYTES", 10)
    refused(raw(client, b"x" * 11), 413, "this is more than")


def test_a_request_that_never_ends_is_given_up(networks, monkeypatch):
    monkeypatch.setattr(app, "_SLOWEST", 0.2)
    with listening(networks, "127.0.0.1", 0) as address:
        host, port = address.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /api/answer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


# --- who asks ---


@pytest.mark.parametrize("host", ["evil.example:8400", "127.0.0.1.evil.example:8400", "127.0.0.1:80", "127.0.0.1", ""])
@pytest.mark.parametrize("path", ["/", "/api/start"])
def test_a_page_whose_name_was_made_to_lead_here_is_refused(client, host, path):
    refused(client.get(path, headers={"Host": host}), 403, "the page has another address")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9000", "https://127.0.0.1:8400"])
def test_a_request_from_another_page_is_refused(client, origin):
    response = client.post("/api/answer", json=question(QUERIES[:1]), headers={"Origin": origin})
    refused(response, 403, "another page sent this request")
    assert "Access-Control-Allow-Origin" not in response.headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert client.options("/api/answer", headers=preflight).status_code == 403


def test_the_page_itself_is_not_refused(client):
    own = {"Origin": f"http://{HOST}"}
    assert client.post("/api/answer", json=question(support=SUPPORT[:2]), headers=own).status_code == 200


def test_other_machines_need_the_token_in_the_address(networks):
    client = TestClient(Guard(app.page_app(networks), None, "secret"), base_url="http://10.0.0.7:8400")
    for path in ("/", "/api/start", "/secre/api/start", "/secret", "/secret0/", "//secret/"):
        refused(client.get(path), 403, "the address lacks the token")
    assert client.get("/secret/api/start").status_code == 200
    assert client.get("/secret/").text.startswith("<!doctype html>")
    cross = client.post("/secret/api/answer", json={}, headers={"Origin": "http://evil.example"})
    refused(cross, 403, "another page sent this request")


def test_the_server_listens_where_it_says_and_gives_others_a_token(networks):
    with listening(networks, "127.0.0.1", 0) as address:
        assert address.startswith("http://127.0.0.1:") and address.count("/") == 3
    with listening(networks, "0.0.0.0", 0) as address:
        _, _, place, token, rest = address.split("/")
        assert len(token) == 32 and not rest
        here = f"http://127.0.0.1:{place.split(':')[1]}"
        assert urllib.request.urlopen(f"{here}/{token}/api/start").status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{here}/api/start")


def test_ten_clients_at_once_get_their_own_answers(networks):
    pairs = [(one, other) for one in SUPPORT for other in SUPPORT if one != other][:10]
    with listening(networks, "127.0.0.1", 0) as address:

        def ask(pair):
            content = json.dumps(question([pair[1]], support=pair)).encode()
            request = urllib.request.Request(f"{address}api/answer", content, {"Content-Type": "application/json"})
            return json.load(urllib.request.urlopen(request))["queries"][0]["probabilities"][-1]

        with ThreadPoolExecutor(10) as pool:
            assert all(found[1] > 0.9 for found in pool.map(ask, pairs))


# --- the command ---


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_at_once(tmp_path, number, status):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started("maml_l2l.draw", "--no-browser", "--port", port, folder=tmp_path) as (process, finish):
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port))  # and stays open
                break
            except OSError:
                assert process.is_alive() and time.monotonic() < deadline
                time.sleep(0.05)
        os.kill(process.pid, number)
        done = finish(timeout=10)
        connection.close()
    assert (done.returncode, done.stderr) == (status, f"stopped by {number.name}: the page is closed.\n")


def test_the_browser_opens_at_the_address_that_is_printed(monkeypatch, caplog):
    def open_browser(address):
        assert urllib.request.urlopen(address).status == 200
        assert f"draw at {address}  (Ctrl-C ends it)" in caplog.text
        raise KeyboardInterrupt

    monkeypatch.setattr(server.webbrowser, "open", open_browser)
    with pytest.raises(KeyboardInterrupt):
        server.serve_page("drawings", "127.0.0.1", 0, browser=True)


def test_mistakes_end_the_command_with_one_line():
    assert_user_error(run("maml_l2l.draw", "--model", "none.pth", "--no-browser"), "there is no checkpoint none.pth")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("maml_l2l.draw", "--no-browser", "--port", port)
    assert_user_error(done, f"cannot serve at 127.0.0.1, port {port}: Address already in use. Give another --port.")


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 99_999, "--port should be from 0, "),
        ("no.such.host.invalid", 0, "there is no address no.such.host.invalid"),
    ],
)
def test_an_address_that_is_none_is_refused(networks, host, port, message):
    with pytest.raises(UserError, match=message), listening(networks, host, port):
        pass


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith(("maml_l2l.page.", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"needs {package}, which is not installed: pip install starlette uvicorn"):
        import maml_l2l.page.server  # noqa: F401
