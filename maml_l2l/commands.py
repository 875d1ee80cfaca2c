"""What commands share: options, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import maml_l2l
from maml_l2l.system.errors import Stopped, UserError, printable
from maml_l2l.system.files import reason
from maml_l2l.system.memory import is_out_of_memory, keep_freed_memory
from maml_l2l.system.messages import on_screen, progress_bars
from maml_l2l.system.screen import screens

_LESS_MEMORY = (
    "Work on fewer tasks at once: --set algorithm.task_chunk=1, or more; or keep fewer inner steps: "
    "--set algorithm.recompute=sqrt."
)


def add_set_option(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--set KEY=VALUE ...`, which may be given many times; `example` is one of them."""
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help=f"override config keys, e.g. {example}",
    )


def add_version_option(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints it and ends the command."""
    parser.add_argument("--version", action="version", version=f"maml_l2l {maml_l2l.__version__}")


def use_named_backbone(settings: Iterable[str], only: Sequence[str] = ()) -> dict[str, Any]:
    """Make the backbone available that `--set model.name=NAME` names, which permits a checkpoint to name it, too.

    only: refuse settings of other keys, which would have no effect.  Returns what is set of the section `model`.
    """
    from maml_l2l.backbones import use_backbone  # PyTorch loads here, not for --help
    from maml_l2l.config.yaml_values import apply_override

    values: dict[str, Any] = {}
    for setting in settings:
        apply_override(values, setting)
        if only and setting.partition("=")[0].strip() not in only:
            raise UserError(
                f"--set {setting}: a prediction takes all but {' and '.join(only)} from the checkpoint. Leave it out."
            )
    model = values.get("model") or {}
    if isinstance(model.get("name"), str):  # what else it may be, the config's own check refuses
        use_backbone(model["name"])
    return model


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main()` and leave the process with its exit status.

    0; 2 after a `UserError` and after what the system refuses, e.g. a path that is too long, which are printed as one
    `error: ...` line on stderr, and where a GPU's memory does not do; 130 after Ctrl-C, 143 after SIGTERM.
    What becomes of stdout does not stop `main`; in the end the status is 1 where a reader has left, as `head` does, and
    2 where it could not be written. Any other exception is a bug and keeps its traceback.
    """
    keep_freed_memory()
    with screens() as (stdout, _):
        status = _status(main)
        stdout.flush()
        if stdout.problem is not None and status in (0, None):
            status = 1 if isinstance(stdout.problem, BrokenPipeError) else 2
            if status == 2:
                print("error: cannot write to the standard output:", reason(stdout.problem), file=sys.stderr)
    sys.exit(status)


def is_first_process() -> bool:
    """Whether this process may write and print for all that torchrun started; alone it always may."""
    return os.environ.get("RANK", "0") == "0"


def _status(main: Callable[[], None]) -> int | str | None:
    try:
        with on_screen(), progress_bars(is_first_process()):
            main()
    except UserError as error:
        print("error:", printable(str(error)), file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(printable(str(stopped)), file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as leave:  # argparse, after --help or a bad option
        return leave.code
    except OSError as error:  # of no file that anybody had in mind: a path too long, a folder without rights
        if is_out_of_memory(error):
            print(f"error: {reason(error)}. {_LESS_MEMORY}", file=sys.stderr)
            return 2
        place = f"{error.filename}: " if error.filename else ""
        print("error:", printable(f"{place}{reason(error)}. Name another path, or change its rights."), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        problem = printable(str(error)).rpartition("Allocator: ")[2].partition(". GPU")[0].rstrip(".")
        problem = problem or "the memory does not suffice"
        print(f"error: {problem}. {_LESS_MEMORY}", file=sys.stderr)
        return 2
    return 0
