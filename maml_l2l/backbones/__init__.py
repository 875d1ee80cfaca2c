"""The networks that MAML adapts."""

from maml_l2l.backbones.conv4 import BatchStatisticsNorm, Conv4

__all__ = ["BatchStatisticsNorm", "Conv4"]
