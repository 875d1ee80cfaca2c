"""The names of what a run folder holds."""

from __future__ import annotations

MAX_KEPT = 20  # networks of the best validations
CONFIG, LAST, PREVIOUS, BEST = "config.yaml", "last.pth", "previous.pth", "best.pth"
SESSIONS, METRICS, CURVES, TENSORBOARD = "sessions.json", "metrics.jsonl", "curves.png", "tensorboard"
LOCK = ".lock"


def best_name(rank: int) -> str:
    """The file of the network that is the best but `rank` - 1 on validation tasks."""
    return BEST if rank == 1 else f"best_{rank}.pth"


NAMES = (CONFIG, LAST, PREVIOUS, *map(best_name, range(1, MAX_KEPT + 1)), SESSIONS, METRICS, CURVES)
