"""The names of what a run folder holds."""

from __future__ import annotations

CONFIG, LAST, PREVIOUS, BEST = "config.yaml", "last.pth", "previous.pth", "best.pth"
SESSIONS, METRICS, CURVES, TENSORBOARD = "sessions.json", "metrics.jsonl", "curves.png", "tensorboard"
LOCK = ".lock"
NAMES = (CONFIG, LAST, PREVIOUS, BEST, SESSIONS, METRICS, CURVES)
