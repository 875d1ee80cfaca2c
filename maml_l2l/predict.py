"""Name pictures: `python -m maml_l2l.predict --support DIR --query FILE_OR_DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from maml_l2l import commands
from maml_l2l.pretrained import DEFAULT, PHOTOS


def main() -> None:
    """Parse the command line, adapt to the support set, name the queries."""
    parser = argparse.ArgumentParser(
        prog="python -m maml_l2l.predict",
        description="Adapt a checkpoint to your own classes, a few pictures each, and name other pictures.",
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        default=DEFAULT,
        help=f"a .pth file, a name in pretrained/, or {PHOTOS} for photographs (default: {DEFAULT})",
    )
    parser.add_argument("--support", metavar="DIR", required=True, type=Path, help="one folder of pictures per class")
    parser.add_argument(
        "--query", metavar="FILE_OR_DIR", required=True, nargs="+", type=Path, help="pictures, and folders of pictures"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="inner steps (default: as many as in training)")
    commands.add_set_option(parser, example="model.name=package.module:factory")
    parser.add_argument("--json", metavar="FILE", help="write all probabilities as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw all pictures, what the network sees, and its predictions")
    commands.add_version_option(parser)
    _predict(parser.parse_args())


def _predict(arguments: argparse.Namespace) -> None:
    # PyTorch and learn2learn load here, not for --help
    from maml_l2l.checkpoints.checkpoint import load_pretrained
    from maml_l2l.data.class_folders import query_pictures, support_pictures
    from maml_l2l.data.pictures import thumbnails
    from maml_l2l.prediction import FewShotClassifier
    from maml_l2l.pretrained import files_of
    from maml_l2l.reports import plots, tables
    from maml_l2l.system.files import check_outputs, write_json

    given = commands.use_named_backbone(arguments.set, only=["model.name", "model.weights"])
    files = files_of(arguments.model)
    classifier = FewShotClassifier(load_pretrained(arguments.model, given.get("weights")), arguments.steps)
    examples, labels = support_pictures(arguments.support)
    queries = query_pictures(arguments.query)
    check_outputs([arguments.json, arguments.plot], [*files, *examples, *queries])
    probabilities = classifier.fit(examples, labels).predict_proba(queries)
    found = tables.prediction_rows(queries, classifier.classes_.tolist(), probabilities)
    if arguments.json:
        write_json(arguments.json, found)
    if arguments.plot:
        support, shown = (
            plots.beside_originals(thumbnails(paths), classifier.pixels(paths))
            for paths in (examples, queries[: plots.DRAWN_QUERIES])
        )
        plots.plot_predictions(support, labels, shown, found, arguments.plot)
    print(tables.predictions_text(found))


if __name__ == "__main__":
    commands.run(main)
