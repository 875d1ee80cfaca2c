"""Checkpoints: what they hold, and whether what they hold fits together."""
