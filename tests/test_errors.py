"""`UserError` is also what callers expect: a ValueError, scikit-learn's NotFittedError, an ImportError."""

import pickle
import subprocess
import sys

import pytest

from maml_l2l.data import archives
from maml_l2l.system.errors import UserError, not_fitted
from tests.commands import ROOT


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_a_user_error_is_a_value_error():
    with pytest.raises(ValueError, match=r"^expected this, found that$"):
        raise UserError("expected this, found that")


def test_what_is_not_fitted_is_scikit_learn_s_error_where_it_is_in_use():
    exceptions = pytest.importorskip("sklearn.exceptions")
    error = not_fitted("call fit first")
    assert isinstance(error, UserError)
    assert isinstance(error, exceptions.NotFittedError)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, exceptions.NotFittedError)
    assert (str(copy), type(copy).__name__) == ("call fit first", "NotFittedError")


def test_what_is_not_fitted_does_not_import_scikit_learn():
    found = python(
        "import sys\nfrom maml_l2l.system.errors import UserError, not_fitted\nerror = not_fitted('no')\n"
        "print(error, isinstance(error, UserError), isinstance(error, AttributeError), 'sklearn' in sys.modules)"
    )
    assert found == "no True True False"


def test_a_missing_learn2learn_is_an_import_error_and_a_user_error():
    found = python(
        "import sys\nsys.modules['learn2learn'] = None\nfrom maml_l2l.system.errors import UserError\n"
        "try:\n    from maml_l2l.system import learn2learn_import\n"
        "except ImportError as error:\n    print(isinstance(error, UserError), error)"
    )
    assert found.startswith("True learn2learn 0.2.0 is not installed. It has no wheels,")


def test_a_refusal_inside_a_block_that_catches_value_errors_comes_out_as_it_is(serve, monkeypatch):
    from tests.conftest import send

    monkeypatch.setattr(archives, "MAX_BYTES", 10)
    address = serve(lambda handler: send(handler, b"x" * 100))
    with pytest.raises(UserError, match=rf"^{address}/a.zip is larger than 10 bytes. Check the address.$"):
        archives.fetch(f"{address}/a.zip")
