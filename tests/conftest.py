"""Fixtures that several test files use."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

# Two workers share two cores: more threads of PyTorch, here or in the commands that tests start, wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Decoded folders of pictures are kept here, and not among those of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="maml_l2l-caches-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# Where tests run in the background of a shell, which ignores Ctrl-C for them, those of Ctrl-C need it all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """`caplog.text` holds what commands print of the package's messages."""
    caplog.set_level("INFO", logger="maml_l2l")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that one test registers is unknown to the next."""
    from maml_l2l.backbones import registry

    monkeypatch.setattr(registry, "_factories", dict(registry._factories))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Omniglot archives beside this checkout."""
    path = Path(__file__).parents[1] / "../shared/data"
    if not path.is_dir():
        pytest.skip(f"the real Omniglot archives are not in {path}")
    return path


@pytest.fixture(scope="session")
def omniglot_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data.root` of the whole Omniglot as 28x28 images, unpacked by our own downloader."""
    from maml_l2l.data.omniglot import download_omniglot

    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "whole_omniglot"
    with FileLock(f"{root}.lock"):  # one worker unpacks it for all
        download_omniglot(root, source=str(shared_data / "omniglot-28x28"), verify=False)
    return root


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """`serve(answer)` starts a web server that calls `answer(handler)` on each GET; returns its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, content: bytes, sent: int | None = None) -> None:
    """Answer with `content`, or announce all of it and break off after `sent` bytes."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:sent])


@pytest.fixture(scope="session")
def glyphs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data.root` of three alphabets of glyphs, drawn once."""
    from maml_l2l.data.glyphs import load_glyphs

    root = tmp_path_factory.mktemp("glyphs")
    load_glyphs(root, alphabets=3)
    return root


@pytest.fixture(scope="session")
def omniglot_as_folder(omniglot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Omniglot as `DIR/alphabet/character/*.png`."""
    root = tmp_path_factory.mktemp("folder")
    for part in ("images_background", "images_evaluation"):
        for alphabet in (omniglot_root / "omniglot-py" / part).iterdir():
            (root / alphabet.name).symlink_to(alphabet)
    return root


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colour data set in ImageFolder layout: 30 classes of 8 textured shapes, JPEG and PNG, of different sizes."""
    from tests.images import textured_shape

    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for label in range(30):
        folder = root / f"class{label:02d}"
        folder.mkdir()
        for index in range(8):
            textured_shape(label, rng).save(folder / f"{index}.{'jpg' if index % 2 else 'png'}")
    return root
