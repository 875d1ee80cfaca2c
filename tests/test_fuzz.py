"""Files from strangers: whatever their bytes, soon a `UserError` or a valid result comes out, and nothing else is done.

The cases are the same in every run (`derandomize`).
"""

import io
import json
import os
import pickle
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maml_l2l.backbones import Conv4
from maml_l2l.checkpoints.checkpoint import FORMAT, VERSION, Checkpoint, load_checkpoint, save_checkpoint
from maml_l2l.config import Experiment, documented_keys, load_experiment, parse_experiment
from maml_l2l.data import archives, omniglot
from maml_l2l.data.labelled_images import cached
from maml_l2l.experiments.resuming import earlier_sessions
from maml_l2l.reports import plots
from maml_l2l.system.errors import UserError, printable
from maml_l2l.system.torch_files import load_torch_file
from tests.commands import assert_user_error, run
from tests.images import numbered_images
from tests.test_two_faced import saved, two_faced

SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
SLOWEST = timedelta(seconds=10)  # nearly all cases take milliseconds; busy machines are slower
SCALE = float(os.environ.get("MAML_L2L_FUZZ", "1"))  # `benchmarks/attack.py` takes more cases


pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's, of what is written here


def cases(number):
    return settings(
        max_examples=round(SCALE * number),
        derandomize=True,
        database=None,
        deadline=SLOWEST,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


@contextmanager
def refusals_are_user_errors():
    """Let a `UserError` pass whose message a user can read; every other exception is a finding."""
    try:
        yield
    except UserError as error:
        assert 0 < len(str(error)) < 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def listing(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# --- bytes that are nearly right ---

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 16),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def edited(content, edits):
    for kind, share, length, new in edits:
        start = int(share * len(content))
        before, piece, after = content[:start], content[start : start + length], content[start + length :]
        content = {
            "replace": before + new + content[start + len(new) :],
            "insert": before + new + piece + after,
            "delete": before + after,
            "repeat": before + piece * 3 + after,
            "cut": before,
        }[kind]
    return content


# --- configs ---

KEYS = [*Experiment.model_fields, *(name for _, name, _ in documented_keys())]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.dates()
    | st.sampled_from(["omniglot", "glyphs", "folder", "second", "cuda:7", "auto", 2**63, -1, 10**400, 1e-3])
)
NAMES = st.sampled_from(KEYS) | st.text(max_size=8) | st.integers() | st.none() | st.booleans() | st.dates()
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
SECTIONS = st.dictionaries(st.sampled_from(list(Experiment.model_fields)), NESTED, max_size=4)


def check_config(folder, content, overrides=()):
    path = folder / "config.yaml"
    path.write_bytes(content)
    with refusals_are_user_errors():
        experiment = load_experiment(path, overrides)
        assert parse_experiment(experiment.model_dump(), "itself") == experiment


@cases(400)
@given(values=SECTIONS | NESTED)
def test_nested_values_as_a_config(folder, values):
    check_config(folder, yaml.dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))


@cases(500)
@given(path=st.sampled_from(SHIPPED), edits=EDITS)
def test_a_shipped_config_with_edited_bytes(folder, path, edits):
    check_config(folder, edited(path.read_bytes(), edits))


# fmt: off
SNIPPETS = st.sampled_from([
    "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!set ", "!!omap ", "!!binary ", "!!null ",
    "!!python/name:os.system ", "!", "? ", "- ", ": ", "[", "]", "{", "}", ",", "\n", "  ", "|", ">", "'", '"', "\\",
    "%", "---", "...", "~", "0x", "1_", "1:1", "1e9", ".inf", "2026-", "\0", "\x1b", "\ud800", "\u2028", "task: ",
    "ways: ", "5",
])
# fmt: on


@cases(500)
@given(snippets=st.lists(SNIPPETS, max_size=20), override=st.lists(SNIPPETS, max_size=5))
def test_snippets_of_yaml_as_a_config_and_as_an_override(folder, snippets, override):
    content = "".join(snippets).encode("utf-8", "surrogatepass")
    check_config(folder, content, [f"task.ways={''.join(override)}"])


# --- checkpoints ---

BACKBONE = {"ways": 3, "channels": 1, "filters": 2, "downsample": "stride"}


def fields():
    torch.manual_seed(0)
    network = Conv4(**BACKBONE)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(5, 1, 28, 28)).sum().backward()
    optimizer.step()
    return {
        "config": Experiment(task={"ways": 3}, model={"filters": 2}).model_dump(),
        "split": {"train": ["a", "b", "c"], "val": ["d", "e", "f"], "test": ["g", "h", "i"]},
        "iteration": 1,
        "validation_accuracy": 50.0,
        "backbone": BACKBONE,
        "weights": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def entries(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def whole(folder):
    """The bytes of a checkpoint that loads."""
    save_checkpoint(Checkpoint(**fields()), folder / "whole.pth")
    assert isinstance(load_checkpoint(folder / "whole.pth"), Checkpoint)
    return (folder / "whole.pth").read_bytes()


def check_checkpoint(folder, content):
    path = folder / "x.pth"
    path.write_bytes(content)
    with refusals_are_user_errors():
        checkpoint = load_checkpoint(path)
        network = checkpoint.learner().module
        assert all(p.isfinite().all() for p in network.parameters())
        if checkpoint.optimizer is not None:
            optimizer = torch.optim.Adam(network.parameters())
            optimizer.load_state_dict(checkpoint.optimizer)
            network(torch.rand(2, checkpoint.backbone["channels"], 28, 28)).sum().backward()
            optimizer.step()


def test_a_checkpoint_cut_anywhere_is_refused(folder, whole):
    for length in range(0, len(whole), 101):
        (folder / "x.pth").write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
            load_checkpoint(folder / "x.pth")


@cases(500)
@given(edits=EDITS)
def test_a_checkpoint_with_edited_bytes(folder, whole, edits):
    check_checkpoint(folder, edited(whole, edits))


@cases(700)
@given(edits=EDITS)
def test_a_checkpoint_with_an_edited_pickle_and_right_sums(folder, whole, edits):
    members = entries(whole)
    pickled = next(name for name in members if name.endswith("data.pkl"))
    check_checkpoint(folder, zipped((members | {pickled: edited(members[pickled], edits)}).items()))


@cases(200)
@given(data=st.data())
def test_a_checkpoint_whose_zip_entries_are_removed_renamed_replaced_or_packed(folder, whole, data):
    members = list(entries(whole).items())
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(members) - 1))
        name, content = members.pop(index)
        other_name, other = data.draw(st.sampled_from(members))
        change = data.draw(st.sampled_from(["remove", "rename", "replace", "twice", "bomb"]))
        if change in ("rename", "twice"):
            members.insert(
                index, (data.draw(st.sampled_from([other_name, "../x", "x/data.pkl", name.upper()])), content)
            )
        if change in ("replace", "twice", "bomb"):
            members.insert(index, (name, {"replace": other, "twice": content, "bomb": bytes(10**6)}[change]))
    compression = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    check_checkpoint(folder, zipped(members, compression))


TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
STRANGE = st.recursive(
    PLAIN | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """The path to each value in nested dictionaries, itself included, and whether it is a dictionary."""
    yield path, isinstance(value, dict)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def changed(value, path, new):
    """Nested dictionaries with `new` at `path`."""
    return {**value, path[0]: changed(value.get(path[0]), path[1:], new)} if path else new


WHOLE = {"format": FORMAT, "version": VERSION, **fields()}
OLD_PLACES = st.sampled_from([path for path, _ in places(WHOLE)])
NEW_PLACES = st.tuples(
    st.sampled_from([path for path, is_dictionary in places(WHOLE) if is_dictionary]),
    st.text(max_size=5) | st.integers(0, 20),
).map(lambda pair: (*pair[0], pair[1]))


@cases(300)
@given(path=OLD_PLACES | NEW_PLACES, new=TENSORS | STRANGE)
def test_a_checkpoint_with_something_strange_in_any_place(folder, path, new):
    buffer = io.BytesIO()
    torch.save(changed(WHOLE, path, new), buffer)
    check_checkpoint(folder, buffer.getvalue())


# fmt: off
GLOBALS = st.sampled_from([
    "os.mkdir", "posix.system", "builtins.eval", "builtins.getattr", "builtins.set", "builtins.bytearray", "torch.load",
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "torch.hub.load", "torch.Size", "torch.Tensor",
    "torch.FloatTensor", "torch.FloatStorage", "torch.device", "torch.storage._load_from_bytes", "none.none",
    "torch.storage.UntypedStorage", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout", "maml_l2l.system.files.make_folder",
]) | st.text("abc.\u00e9", min_size=3, max_size=8).map(lambda text: f"a.{text}")
# fmt: on


@cases(300)
@given(name=GLOBALS, arguments=st.lists(PLAIN | st.sampled_from([10**12, "{pwned}"]), max_size=3), data=st.data())
def test_a_pickle_that_calls_what_it_names(folder, whole, name, arguments, data):
    before = listing(folder)
    arguments = tuple(str(folder / "pwned") if argument == "{pwned}" else argument for argument in arguments)
    module, _, attribute = name.rpartition(".")
    named = {
        "global": f"c{module}\n{attribute}\n".encode(),
        "stack": pickle.dumps((module, attribute), 4)[11:-3] + b"\x93",
    }[data.draw(st.sampled_from(["global", "stack"]))]
    call = b"\x80\x02" + named + pickle.dumps(arguments, 2)[2:-1] + b"R."
    members = {key: call if key.endswith("data.pkl") else content for key, content in entries(whole).items()}
    (folder / "x.pth").unlink(missing_ok=True)
    check_checkpoint(folder, zipped(members.items()))
    (folder / "x.pth").unlink()
    assert listing(folder) == {path: time for path, time in before.items() if path.name != "x.pth"}


# --- archives ---

# fmt: off
PARTS = st.sampled_from([
    "a", "b", "1.png", "..", ".", "", "C:", "c:\\x", "\\", "a\0b", "\x1b[2J", "x" * 300, "\u00e9", "~", "CON", "a ",
    "__MACOSX",
])
# fmt: on
CLIMBS = st.builds(
    "{}{}".format, st.sampled_from(["../", "../../", "../../../", "a/../../../", "/", ""]), st.sampled_from("ab")
)
ENTRY_NAMES = CLIMBS | st.lists(PARTS, min_size=1, max_size=3).map("/".join) | st.text(max_size=6)


@st.composite
def hostile_zips(draw):
    """The bytes of a zip archive whose entries have any names and kinds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as file:
        for name in draw(st.lists(ENTRY_NAMES, max_size=4)):
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            kind = draw(st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, 0]))
            info.external_attr = (kind | 0o777) << 16
            inner = zipped([("../evil", b"x")])
            content = draw(st.sampled_from([b"", b"x", b"../../evil", b"/etc/passwd", inner, bytes(60_000)]))
            file.writestr(info, content)
    return buffer.getvalue()


def check_archive(folder, content):
    """Unpack `content` as the download does; nothing but the folder that is meant for it may change."""
    (folder / "a.zip").write_bytes(content)
    (folder / "deep/down").mkdir(parents=True, exist_ok=True)
    before = listing(folder)
    with patch.object(archives, "MAX_BYTES", 100_000), TemporaryDirectory(dir=folder / "deep/down") as out:
        with refusals_are_user_errors():
            archives.extract(folder / "a.zip", archives.list_files(folder / "a.zip"), Path(out))
        archives.is_whole(folder / "a.zip")
        inside = [path for path in listing(folder) if Path(out) in path.parents]
        assert not any(path.is_symlink() for path in inside)
        assert sum(path.stat().st_size for path in inside) <= 100_000
    assert listing(folder) == before


@cases(500)
@given(content=hostile_zips())
def test_an_archive_with_hostile_entries(folder, content):
    check_archive(folder, content)


@cases(500)
@given(content=hostile_zips(), edits=EDITS)
def test_an_archive_with_edited_bytes(folder, content, edits):
    check_archive(folder, edited(content, edits))


# --- images ---


def drawing(kind):
    """The bytes of a picture of the size of an Omniglot drawing."""
    random = np.random.default_rng(0)
    form, mode = kind.split()
    image = Image.fromarray(random.integers(0, 256, (105, 105, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


KINDS = ("png 1", "png L", "png RGB", "png P", "png RGBA", "png LA", "jpeg L", "gif P")
DRAWINGS = {kind: drawing(kind) for kind in KINDS}


def with_right_sums(content):
    """A PNG with the CRC-32 of each of its chunks put right, so that damage to them reaches the decoder."""
    out, start = content[:8], 8
    while len(content) >= start + 12:
        (length,) = struct.unpack(">I", content[start : start + 4])
        chunk = content[start + 4 : start + 8 + length]
        out += content[start : start + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        start += 12 + length
    return out + content[start:]


def check_image(folder, content):
    path = folder / "1.png"
    path.write_bytes(content)
    with refusals_are_user_errors():
        pixels = omniglot._decode_file(str(path))
        assert pixels.shape == (28, 28) and set(pixels.ravel().tolist()) <= {0, 255}


def test_pictures_that_nobody_edited(folder):
    for kind, content in DRAWINGS.items():
        (folder / "1.png").write_bytes(content)
        if kind.startswith("png"):
            assert omniglot._decode_file(str(folder / "1.png")).shape == (28, 28)
            assert with_right_sums(content) == content
        else:
            with pytest.raises(UserError, match=r"1.png is damaged"):
                omniglot._decode_file(str(folder / "1.png"))


@cases(600)
@given(kind=st.sampled_from(list(DRAWINGS)), edits=EDITS)
def test_a_picture_with_edited_bytes(folder, kind, edits):
    check_image(folder, edited(DRAWINGS[kind], edits))


@cases(600)
@given(
    kind=st.sampled_from([kind for kind in DRAWINGS if kind.startswith("png")]),
    edits=EDITS,
    size=st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_a_png_with_edited_chunks_and_right_sums(folder, kind, edits, size):
    content = edited(DRAWINGS[kind], edits)
    if size is not None:
        content = content[:16] + struct.pack(">II", *size) + content[24:]
    check_image(folder, with_right_sums(content))


@cases(300)
@given(edits=EDITS)
def test_an_image_cache_with_edited_bytes(folder, edits):
    images, path = numbered_images(classes=3, images_a_class=2), folder / "cache.pt"
    path.unlink(missing_ok=True)
    cached(path, "source", lambda: images)
    path.write_bytes(edited(path.read_bytes(), edits))
    found = cached(path, "source", lambda: images)
    assert torch.equal(found.pixels, images.pixels) and torch.equal(found.labels, images.labels)
    assert found.class_names == images.class_names


# --- archives of which two readers see different lists of entries ---


@cases(200)
@given(shown=st.integers(0, 5), hidden=st.sampled_from(["tensors", "sparse", "code"]), edits=st.none() | EDITS)
def test_what_is_loaded_is_what_was_checked(folder, shown, hidden, edits):
    other = {
        "tensors": {"x": torch.ones(1000)},
        "sparse": {"x": torch.eye(3).to_sparse()},
        "code": {"x": Payload(str(folder / "pwned"))},
    }[hidden]
    content = two_faced(saved({"x": torch.full((shown,), 5.0)}), saved(other))
    (folder / "x.pth").write_bytes(content if edits is None else edited(content, edits))
    with refusals_are_user_errors():
        found = load_torch_file(folder / "x.pth", "checkpoint")
        assert edits is not None or found["x"].tolist() == [5.0] * shown
    assert not (folder / "pwned").exists()


# --- what a run folder holds beside its checkpoints ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@cases(300)
@given(content=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50), depth=st.integers(0, 3000))
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_any_bytes_as_sessions(folder, content, depth):
    (folder / "sessions.json").write_bytes(b"[" * depth + content + b"]" * depth)
    assert all(isinstance(session, dict) for session in earlier_sessions(folder))


@cases(300)
@given(line=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50), depth=st.integers(0, 3000))
def test_any_bytes_as_a_line_of_metrics(line, depth):
    found = plots._figures(b"[" * depth + line)
    assert all(isinstance(value, (int, float)) for value in found.values())


@cases(300)
@given(text=st.text(st.characters(), max_size=30))
def test_any_name_is_printed_in_one_line_that_steers_nothing(text):
    shown = printable(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    shown.encode()


# --- the commands ---


def test_commands_end_with_one_line_and_status_2(tmp_path):
    torch.save(
        {"format": FORMAT, "version": VERSION, "weights": Payload(str(tmp_path / "pwned"))}, tmp_path / "code.pth"
    )
    (tmp_path / "deep.yaml").write_text("task: " + "[" * 3000)
    (tmp_path / "escape.yaml").write_text('"\\e[2J\\n": 5')
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images_background/a/b/1.png", bytes(archives.MAX_BYTES + 1))
    for arguments, message in [
        (["maml_l2l.eval", "--model", "code.pth"], "code.pth holds objects that could run code when loaded"),
        (["maml_l2l.train", "--config", "deep.yaml"], "deep.yaml is not valid YAML: it is nested too deeply"),
        (["maml_l2l.train", "--config", "escape.yaml"], "escape.yaml: unknown key `\\x1b[2J `"),
        (["maml_l2l.download", "--path", "data", "--source", ".", "--no-verify"], "would unpack to 268435457 bytes"),
    ]:
        assert_user_error(run(*arguments, folder=tmp_path), message)
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "runs").exists()
