"""The one place that imports learn2learn.

learn2learn imports gym, which prints a notice about its own retirement to stderr. That notice tells the user of this
package nothing, so it is kept off the screen; anything else that is written during the import is passed on.
"""

from __future__ import annotations

import contextlib
import io
import sys

from maml_l2l.system.errors import MissingPackage

_INSTALL = (
    "learn2learn 0.2.0 is not installed. It has no wheels, and on Python 3.11 or newer it builds only with a setting: "
    "run `pip install -U pip` and then `pip install -r requirements.txt`, or "
    "`pip install learn2learn==0.2.0 --config-settings=--build-option=build_ext` "
    "(a C compiler and Python's headers are needed; on Debian: build-essential python3-dev)."
)

_stderr = io.StringIO()
try:
    with contextlib.redirect_stderr(_stderr):
        import learn2learn
        from learn2learn.algorithms import MAML
        from learn2learn.data import MetaDataset, Taskset
        from learn2learn.data import transforms as samplers
        from learn2learn.data.transforms import KShots, NWays
        from learn2learn.utils import clone_module, update_module
except ModuleNotFoundError as error:
    if error.name != "learn2learn":
        raise
    raise MissingPackage(_INSTALL) from None
finally:
    sys.stderr.writelines(line for line in _stderr.getvalue().splitlines(keepends=True) if "gym" not in line.lower())

__all__ = [
    "MAML",
    "KShots",
    "MetaDataset",
    "NWays",
    "Taskset",
    "clone_module",
    "learn2learn",
    "samplers",
    "update_module",
]
