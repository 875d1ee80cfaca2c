"""Teach a network your signs in the browser: `python -m maml_l2l.draw`."""

from __future__ import annotations

import argparse
import os

from maml_l2l import commands
from maml_l2l.pretrained import DEFAULT, PHOTOS


def main() -> None:
    """Parse the command line, serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m maml_l2l.draw",
        description="Serve a page on which a network learns the signs that you draw while you watch.",
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        type=os.path.expanduser,
        default=DEFAULT,
        help=f"a .pth file, a name in pretrained/, or {PHOTOS} (default: {DEFAULT}); the page offers others, too",
    )
    parser.add_argument("--port", type=int, default=8400, help="where the page is served (default: 8400)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="an address of this machine that others may reach; the page's address then holds a token (default: "
        "127.0.0.1, which this machine alone reaches)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    commands.add_version_option(parser)
    arguments = parser.parse_args()

    from maml_l2l.page.server import serve_page  # PyTorch and learn2learn load here, not for --help

    serve_page(arguments.model, arguments.host, arguments.port, not arguments.no_browser)


if __name__ == "__main__":
    commands.run(main)
