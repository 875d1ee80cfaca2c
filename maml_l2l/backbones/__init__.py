"""The networks that MAML adapts, by name: the built-in ones and those that users register."""

from maml_l2l.backbones.conv4 import BatchStatisticsNorm, Conv4
from maml_l2l.backbones.library import LibraryNetwork
from maml_l2l.backbones.mlp import MLP
from maml_l2l.backbones.registry import (
    backbone_arguments,
    build_backbone,
    factory_arguments,
    is_built_in,
    register_backbone,
    use_backbone,
)
from maml_l2l.backbones.resnet12 import ResNet12
from maml_l2l.backbones.statistics import first_images_normalise, norm_parameter_names

__all__ = [
    "MLP",
    "BatchStatisticsNorm",
    "Conv4",
    "LibraryNetwork",
    "ResNet12",
    "backbone_arguments",
    "build_backbone",
    "factory_arguments",
    "first_images_normalise",
    "is_built_in",
    "norm_parameter_names",
    "register_backbone",
    "use_backbone",
]
