"""Few-shot image classification with MAML, on PyTorch and learn2learn."""

__version__ = "0.1.0"
