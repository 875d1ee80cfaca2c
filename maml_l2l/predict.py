"""Name pictures: `python -m maml_l2l.predict --support DIR --query FILE_OR_DIR`."""

from __future__ import annotations

import argparse
import os

from maml_l2l import commands
from maml_l2l.pretrained import DEFAULT, PHOTOS, files_of
from maml_l2l.system.errors import UserError, listing
from maml_l2l.system.files import check_outputs, user_path, write_json


def main() -> None:
    """Parse the command line, adapt to the support set, name the queries."""
    parser = argparse.ArgumentParser(
        prog="python -m maml_l2l.predict",
        description="Adapt a checkpoint to your own classes, a few pictures each, and name other pictures.",
    )
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        type=os.path.expanduser,
        default=DEFAULT,
        help=f"a .pth file, a name in pretrained/, or {PHOTOS} for photographs (default: {DEFAULT})",
    )
    parser.add_argument(
        "--support", metavar="DIR", required=True, type=user_path, help="one folder of pictures per class"
    )
    parser.add_argument(
        "--query",
        metavar="FILE_OR_DIR",
        required=True,
        nargs="+",
        type=user_path,
        help="pictures, and folders of pictures",
    )
    parser.add_argument("--skip_damaged", action="store_true", help="leave out pictures that cannot be read")
    parser.add_argument("--steps", type=int, metavar="N", help="inner steps (default: as many as in training)")
    parser.add_argument(
        "--min_probability",
        type=float,
        metavar="P",
        default=0.0,
        help="answer `unsure` below it, from 0 to 1 (default: 0)",
    )
    commands.add_set_option(parser, example="model.name=package.module:factory")
    parser.add_argument("--json", metavar="FILE", type=user_path, help="write all probabilities as JSON")
    parser.add_argument(
        "--plot", metavar="FILE", type=user_path, help="draw all pictures, what the network sees, and its predictions"
    )
    commands.add_version_option(parser)
    arguments = parser.parse_args()
    if not 0 <= arguments.min_probability <= 1:
        parser.error(f"--min_probability: expected a number from 0 to 1, found {arguments.min_probability}")
    _predict(arguments)


def _predict(arguments: argparse.Namespace) -> None:
    # PyTorch and learn2learn load here, not for --help
    from maml_l2l.checkpoints.checkpoint import load_pretrained
    from maml_l2l.data.class_folders import query_pictures, support_pictures
    from maml_l2l.data.given_pictures import readable_pictures
    from maml_l2l.data.pictures import thumbnails
    from maml_l2l.prediction import FewShotClassifier
    from maml_l2l.reports import plots, tables

    plots.check_ending(arguments.plot)
    given = commands.use_named_backbone(arguments.set, only=["model.name", "model.weights"])
    files = files_of(arguments.model)
    checkpoint = load_pretrained(arguments.model, given.get("weights"))
    examples, labels = support_pictures(arguments.support)
    queries = query_pictures(arguments.query)
    check_outputs([arguments.json, arguments.plot], [*files, *examples, *queries])
    if arguments.skip_damaged:
        class_of = dict(zip(examples, labels, strict=True))
        examples, queries = (readable_pictures(paths, checkpoint.experiment.data) for paths in (examples, queries))
        if lost := sorted({*labels} - {class_of[path] for path in examples}):
            raise UserError(f"no picture of {listing(lost)} can be read. Replace one, or remove the folder.")
        labels = [class_of[path] for path in examples]
    classifier = FewShotClassifier(checkpoint, arguments.steps)
    probabilities = classifier.fit(examples, labels).predict_proba(queries)
    found = tables.prediction_rows(queries, classifier.classes_.tolist(), probabilities, arguments.min_probability)
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
