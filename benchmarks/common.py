"""What the benchmarks share: timing, the peak of the machine, tables and files."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from maml_l2l.config import Run
from maml_l2l.system.device import find_device
from maml_l2l.system.errors import UserError
from maml_l2l.system.memory import keep_freed_memory


def milliseconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def set_up(run: Run) -> torch.device:
    """Set this process up, for good, as the commands are while they compute; return the device that `run` names."""
    keep_freed_memory()
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    torch.set_float32_matmul_precision("high" if run.precision == "tf32" else "highest")
    return find_device(run.device)


def matmul_peak(device: str = "cpu") -> float:
    """GFLOP/s of float32 matrix multiplication on `device`: the median over 10 products of 2048 x 2048 (GPU: 8192)."""
    size = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device)
    times = [milliseconds(lambda: (a @ b)[0, 0].item()) for _ in range(12)][2:]
    return 2 * size**3 / statistics.median(times) / 1e6


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a Markdown table with aligned columns, which reads well on a screen too."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", metavar="FILE", help="write all figures as JSON")
    arguments.add_argument("--plot", metavar="FILE", help="draw the figures (.png, .svg, .pdf)")
    return arguments


def write_json(path: str | None, content: dict) -> None:
    """Write `content` where a path was given."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n")


def go_on(path: str | None, content: dict, same: Sequence[str]) -> dict:
    """What an earlier run has written to `path`; `content` where it has written nothing.

    Raises `UserError` where the values of the keys `same` are not those of `content`.
    """
    if not path or not Path(path).exists():
        return content
    found = json.loads(Path(path).read_text())
    for key in same:
        if found.get(key) != content[key]:
            raise UserError(
                f"{path} holds figures of another run: its {key} is {found.get(key)!r}, and now {content[key]!r}. "
                "Name another file."
            )
    return found
