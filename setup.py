"""Which packages there are; all the rest stands in setup.cfg, where `find:` can name no further package."""

import warnings

from setuptools import find_packages, setup

# Of every editable installation setuptools warns that its folder comes first on the path: it is meant to.
warnings.filterwarnings("ignore", message="Editable installation")

setup(
    packages=[*find_packages(include=["maml_l2l*"]), "maml_l2l.pretrained_networks", "maml_l2l.sample_drawings"],
    package_dir={"maml_l2l.pretrained_networks": "pretrained", "maml_l2l.sample_drawings": "examples/drawings"},
    package_data={
        "maml_l2l": ["py.typed"],
        "maml_l2l.page": ["static/*"],
        "maml_l2l.pretrained_networks": ["*.pth", "names.json"],
        "maml_l2l.sample_drawings": ["support/*/*.png", "queries/*.png"],
    },
)
