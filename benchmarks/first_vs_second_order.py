"""First and second order trained side by side: `benchmarks.meta_gradients` with these two.

python -m benchmarks.first_vs_second_order --config configs/omniglot_5w1s.yaml [--set KEY=VALUE ...] [--out DIR]
"""

from __future__ import annotations

from benchmarks import meta_gradients
from maml_l2l import commands


def main() -> None:
    """Train, compare, write the report."""
    meta_gradients.main(trained=("second", "first"), compared=("first",), name="first_vs_second_order")


if __name__ == "__main__":
    commands.run(main)
