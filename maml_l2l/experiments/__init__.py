"""Training and evaluation, and the folder that records a run."""
