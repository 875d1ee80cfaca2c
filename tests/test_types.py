"""What type checkers and editors are told of the public names is so."""

import subprocess
import sys

import pytest

from tests.commands import ROOT


def test_mypy_has_nothing_to_say():
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
