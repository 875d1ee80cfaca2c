"""Download Omniglot, or mend a damaged copy of it: `python -m maml_l2l.download --path data`."""

from __future__ import annotations

import argparse
import os

from maml_l2l import commands


def main() -> None:
    """Parse the command line, download what is missing, say what there is."""
    parser = argparse.ArgumentParser(
        prog="python -m maml_l2l.download",
        description="Download Omniglot in torchvision's layout, or mend what is missing or damaged there.",
    )
    parser.add_argument(
        "--path", default="data", metavar="DIR", type=os.path.expanduser, help="folder of the data (default: data)"
    )
    parser.add_argument(
        "--source",
        metavar="BASE_OR_FOLDER",
        type=os.path.expanduser,
        help="a base address or a folder that holds images_background.zip and images_evaluation.zip",
    )
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="accept archives whose MD5 sums are not those of the original ones",
    )
    commands.add_version_option(parser)
    arguments = parser.parse_args()

    from maml_l2l.data.omniglot import download_omniglot  # the libraries load here, not for --help

    print(download_omniglot(arguments.path, arguments.source, arguments.verify))


if __name__ == "__main__":
    commands.run(main)
