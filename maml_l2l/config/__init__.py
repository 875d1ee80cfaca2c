"""One experiment as one frozen, validated value, from a YAML file and overrides."""

from maml_l2l.config.algorithm import Algorithm
from maml_l2l.config.experiment import (
    MAX_WAYS,
    Data,
    Eval,
    Experiment,
    Run,
    Task,
    Train,
)
from maml_l2l.config.loading import (
    changed_keys,
    documented_keys,
    keys_as_markdown,
    load_experiment,
    parse_experiment,
    with_overrides,
)
from maml_l2l.config.model import BACKBONES, MAX_FILTERS, Model
from maml_l2l.config.protocols import PROTOCOLS, Protocol, find_protocol, under_protocol

__all__ = [
    "BACKBONES",
    "MAX_FILTERS",
    "MAX_WAYS",
    "PROTOCOLS",
    "Algorithm",
    "Data",
    "Eval",
    "Experiment",
    "Model",
    "Protocol",
    "Run",
    "Task",
    "Train",
    "changed_keys",
    "documented_keys",
    "find_protocol",
    "keys_as_markdown",
    "load_experiment",
    "parse_experiment",
    "under_protocol",
    "with_overrides",
]
