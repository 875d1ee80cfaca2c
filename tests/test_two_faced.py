"""Archives of which Python's zipfile sees other entries than PyTorch: what is loaded is what was checked."""

import io
import struct
import zipfile
import zlib

import pytest
import torch

from maml_l2l.system.errors import UserError
from maml_l2l.system.torch_files import load_torch_file


def saved(content):
    """The entries of what `torch.save` writes, by name."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def two_faced(seen_by_python, seen_by_pytorch):
    """A zip64 archive with two lists of entries: one where Python looks, one where the locator points to."""
    body, ends = b"", []
    for members in (seen_by_pytorch, seen_by_python):
        listed = b""
        for name, content in members.items():
            encoded = name.encode()
            sums = zlib.crc32(content), len(content), len(content), len(encoded), 0
            listed += struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, *sums, 0, 0, 0, 0, len(body)) + encoded
            body += struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, *sums) + encoded + content
        ends.append((listed, len(members)))
    for listed, count in ends:
        start, record = len(body), len(body) + len(listed)
        body += listed + struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(listed), start)
        if listed is ends[0][0]:
            first_record = record
    body += struct.pack("<4sLQL", b"PK\6\7", 0, first_record, 1)
    return body + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)


def test_the_archive_that_was_checked_is_the_one_that_is_loaded(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(two_faced(saved({"x": torch.zeros(3)}), saved({"x": torch.ones(4)})))
    assert torch.load(path, weights_only=True)["x"].tolist() == [1, 1, 1, 1], "PyTorch sees the other one"
    assert load_torch_file(path, "checkpoint")["x"].tolist() == [0, 0, 0]


def test_what_could_run_code_is_not_hidden_by_another_archive(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(two_faced(saved({"x": 1}), saved({"x": torch.eye(3).to_sparse()})))
    assert load_torch_file(path, "checkpoint") == {"x": 1}
    path.write_bytes(two_faced(saved({"x": torch.eye(3).to_sparse()}), saved({"x": 1})))
    with pytest.raises(UserError, match=r"could run code when loaded, such as torch._utils._rebuild_sparse_tensor"):
        load_torch_file(path, "checkpoint")


@pytest.mark.parametrize("name", ["DATA.PKL", "data.PKL", "Data.pkl"])
def test_a_pickle_in_capitals_is_not_loaded_unseen(tmp_path, name):
    members = saved({"x": torch.eye(3).to_sparse()})
    renamed = {key.replace("data.pkl", name): content for key, content in members.items()}
    (tmp_path / "x.pth").write_bytes(zipped(renamed))
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_torch_file(tmp_path / "x.pth", "checkpoint")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for members in (saved({"x": 1}), saved({"x": 2})):
            for name, content in members.items():
                file.writestr(name, content)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_torch_file(tmp_path / "x.pth", "checkpoint")


def test_every_kind_of_tensor_that_training_saves_comes_back(tmp_path):
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
    content = {str(kind): torch.arange(6).to(kind).reshape(2, 3).T for kind in kinds}
    (tmp_path / "x.pth").write_bytes(zipped(saved(content)))
    found = load_torch_file(tmp_path / "x.pth", "checkpoint")
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in content.items()
    )
