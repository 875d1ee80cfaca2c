"""The table of config keys: `python -m maml_l2l.config`."""

from maml_l2l.config import keys_as_markdown

print(keys_as_markdown())
