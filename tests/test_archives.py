"""Fetching and unpacking: broken connections, damaged archives, hostile entries."""

import contextlib
import itertools
import random
import stat
import struct
import threading
import time
import zipfile

import pytest

from maml_l2l.data import archives
from maml_l2l.system import messages
from maml_l2l.system.errors import UserError
from tests.conftest import send

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(archives, "PAUSES_S", (0.0, 0.0))


def counted(answer):
    """An answer that is told which request, from 0 on, it answers; `requests` collects their paths."""
    requests = []

    def answer_and_count(handler):
        requests.append(handler.path)
        answer(handler, len(requests) - 1)

    return answer_and_count, requests


def write_zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def unpack(archive, folder):
    folder.mkdir(exist_ok=True)
    archives.extract(archive, archives.list_files(archive), folder)


def test_what_the_server_sends_is_returned(serve):
    base = serve(lambda handler: send(handler, CONTENT))
    assert archives.fetch(f"{base}/a.zip") == CONTENT


def test_a_connection_that_drops_half_way_is_tried_again(serve):
    answer, requests = counted(lambda handler, n: send(handler, CONTENT, sent=None if n == 1 else 100_000))
    assert archives.fetch(serve(answer) + "/a.zip") == CONTENT
    assert len(requests) == 2


def test_a_connection_that_always_drops_is_an_error_and_no_short_file(serve):
    base = serve(lambda handler: send(handler, CONTENT, sent=100_000))
    expected = r"a\.zip: the connection ended after 100000 of 256000 bytes \(attempts: 3\)"
    with pytest.raises(UserError, match=expected):
        archives.fetch(f"{base}/a.zip")


@pytest.mark.parametrize("status, attempts", [(404, 1), (403, 1), (429, 3), (503, 3)])
def test_only_answers_that_may_change_are_asked_for_again(serve, status, attempts):
    answer, requests = counted(lambda handler, n: handler.send_error(status))
    with pytest.raises(UserError, match=rf"a\.zip: the server answered {status} .*\(attempts: {attempts}\)"):
        archives.fetch(serve(answer) + "/a.zip")
    assert len(requests) == attempts


def test_a_server_that_hangs_is_given_up_after_the_time_out(serve, monkeypatch):
    monkeypatch.setattr(archives, "TIMEOUT_S", 0.1)
    test_is_over = threading.Event()
    base = serve(lambda handler: test_is_over.wait(10))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer for 0\.1 s \(attempts: 3\)"):
        archives.fetch(f"{base}/a.zip")
    assert time.monotonic() - start < 5
    test_is_over.set()


def test_an_endless_answer_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 100_000)
    with pytest.raises(UserError, match="larger than 100000 bytes"):
        archives.fetch(serve(lambda handler: send(handler, CONTENT)) + "/a.zip")


def test_an_address_without_a_server_says_why(serve):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/a\.zip: .*refused.*\(attempts: 3\)"):
        archives.fetch("http://127.0.0.1:1/a.zip")


@pytest.mark.parametrize("address", ["http://127.0.0.1:port/a.zip", "http:///a.zip", "http://[::1/a.zip"])
def test_a_malformed_address_is_a_user_error(address):
    with pytest.raises(UserError, match="cannot download"):
        archives.fetch(address)


def test_entries_outside_the_folder_are_not_unpacked(tmp_path):
    outside = ["../evil", "a/../../evil", "/evil", "..\\evil", "a\\evil", "C:/evil", "a//evil", "./evil"]
    archive = write_zip(tmp_path / "a.zip", dict.fromkeys([*outside, "a/good..png"], b"x"))
    unpack(archive, tmp_path / "out")
    assert files_below(tmp_path) == {"a.zip", "out/a/good..png"}


def test_macos_junk_is_not_unpacked(tmp_path):
    junk = ["__MACOSX/a/._1.png", "a/.DS_Store", "a/._1.png", "a/__MACOSX/1.png"]
    unpack(write_zip(tmp_path / "a.zip", dict.fromkeys([*junk, "a/1.png"], b"x")), tmp_path / "out")
    assert files_below(tmp_path / "out") == {"a/1.png"}


def test_links_are_not_unpacked(tmp_path):
    link = zipfile.ZipInfo("a/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    unpack(write_zip(tmp_path / "a.zip", {link: "/etc/passwd", "a/1.png": b"x"}), tmp_path / "out")
    assert files_below(tmp_path / "out") == {"a/1.png"}


def test_an_archive_that_declares_too_much_is_refused_before_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    archive = write_zip(tmp_path / "a.zip", {"1": b"0" * 600, "2": b"0" * 600})
    with pytest.raises(UserError, match=r"a\.zip would unpack to 1200 bytes, at most 1000"):
        archives.list_files(archive)
    assert not archives.is_whole(archive)


def test_an_entry_that_inflates_beyond_its_declared_size_is_refused(tmp_path):
    content = bytearray(write_zip(tmp_path / "a.zip", {"1": b"0" * 10_000_000}).read_bytes())
    true_size = (10_000_000).to_bytes(4, "little")
    assert content.count(true_size) == 2  # in the entry's own header and in the list at the end
    (tmp_path / "a.zip").write_bytes(content.replace(true_size, (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"a\.zip cannot be read as a zip archive"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert files_below(tmp_path / "out") == set()


def encrypted(content):
    """Set the flag of encryption, bit 0 at offset 6 of each local header and offset 8 of each central one."""
    marked = bytearray(content)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = marked.index(signature)
        marked[start + offset] |= 1
    return bytes(marked)


def flipped(content):
    damaged = bytearray(content)
    damaged[60] ^= 0xFF
    return bytes(damaged)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: b"<html>no such page</html>",
        lambda _: b"",
        encrypted,
        flipped,
    ],
    ids=["truncated", "html", "empty", "encrypted", "flipped bits"],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_one_clear_error_and_leaves_nothing(tmp_path, damage, compression):
    archive = write_zip(tmp_path / "a.zip", {"a/1.png": CONTENT}, compression)
    assert archives.is_whole(archive)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match=r"a\.zip cannot be read as a zip archive .*: get it anew"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert not archives.is_whole(archive)


def test_no_damage_whatever_escapes_as_another_error(tmp_path):
    whole = write_zip(tmp_path / "a.zip", {"a/1.png": CONTENT[:1024], "a/2.png": CONTENT[:1024]}).read_bytes()
    found = set()
    for seed in range(600):
        chance, damaged = random.Random(seed), bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 4))):
            damaged[chance.randrange(len(damaged))] = chance.choice((0, 255, chance.randrange(256)))
        if chance.random() < 0.2:
            start = chance.randrange(len(damaged))
            del damaged[start : start + chance.randrange(40)]
        (tmp_path / "a.zip").write_bytes(damaged)
        found.add(archives.is_whole(tmp_path / "a.zip"))
    assert found == {True, False}  # some damage, e.g. to a date, does no harm


def test_unpacking_keeps_what_the_user_has_in_the_folder(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a/b/1.png": b"new", "a/c/1.png": b"new"})
    (tmp_path / "out/a/b").mkdir(parents=True)
    (tmp_path / "out/a/b/mine.txt").write_text("mine")
    (tmp_path / "out/a/b/1.png").write_text("half")
    unpack(archive, tmp_path / "out")
    assert files_below(tmp_path / "out") == {"a/b/1.png", "a/b/mine.txt", "a/c/1.png"}
    assert (tmp_path / "out/a/b/1.png").read_text() == "new"


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a/1.png": b"x"})
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"cannot unpack .*a\.zip into .*out: Not a directory\. Free space"):
        archives.extract(archive, archives.list_files(archive), tmp_path / "out")


def test_same_content_tells_size_and_bytes(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"1.png": b"abc"})
    (info,) = archives.list_files(archive)
    path = tmp_path / "1.png"
    for content, same in ((b"abc", True), (b"abd", False), (b"ab", False), (b"", False)):
        path.write_bytes(content)
        assert archives.same_content(path, info) == same
    assert not archives.same_content(tmp_path / "absent.png", info)


def slowly(handler, content, header=b"HTTP/1.0 200 OK\r\n\r\n"):
    """Send a byte every 20 ms, for as long as somebody listens."""
    with contextlib.suppress(OSError):
        for byte in itertools.chain(header, itertools.cycle(content)):
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.02)


@pytest.mark.parametrize(
    "header", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: ", b""], ids=["body", "header", "status"]
)
def test_a_server_that_sends_byte_after_byte_is_given_up(serve, monkeypatch, header):
    monkeypatch.setattr(archives, "PATIENCE_S", 0.3)
    base = serve(lambda handler: slowly(handler, b"x", header))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"it sends less than 4096 bytes a second \(attempts: 3\)"):
        archives.fetch(f"{base}/a.zip")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("shown", [True, False])
def test_the_reading_thread_shows_bars_as_its_caller_does(serve, monkeypatch, shown):
    bars = []

    def noted(*arguments, **options):
        bars.append(messages._bars_shown.get())
        return messages.progress_bar(*arguments, **options)

    monkeypatch.setattr(archives, "progress_bar", noted)
    with messages.progress_bars(shown):
        archives.fetch(serve(lambda handler: send(handler, CONTENT)) + "/a.zip")
    assert bars == [shown]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:1/a.zip", "file:///etc/passwd", "data:text/plain,x"])
def test_a_server_cannot_send_its_readers_anywhere(serve, address):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    with pytest.raises(UserError, match=r"cannot download .*(unknown url type|not allowed)"):
        archives.fetch(serve(answer) + "/a.zip")


def test_redirects_between_servers_are_followed(serve):
    target = serve(lambda handler: send(handler, CONTENT)) + "/b.zip"

    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    assert archives.fetch(serve(answer) + "/a.zip") == CONTENT


def test_what_a_server_says_is_cut_short(serve):
    base = serve(lambda handler: handler.send_response(404, "x" * 50_000) or handler.end_headers())
    with pytest.raises(UserError, match=r"the server answered 404 x{100} \(attempts: 1\)"):
        archives.fetch(f"{base}/a.zip")


def test_a_list_of_entries_that_is_too_long_is_not_read(tmp_path):
    size = 2**25
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, size, 0, 0)
    with open(tmp_path / "a.zip", "wb") as file:
        file.truncate(size)  # a hole, which takes no room on the disk
        file.seek(size)
        file.write(end)
    with pytest.raises(UserError, match=r"cannot be read as a zip archive \(it asks to read too much at once\)"):
        archives.list_files(tmp_path / "a.zip")


def test_two_may_unpack_at_once(tmp_path, monkeypatch):
    """One does not take the other's folder for what a killed process left."""
    archive = write_zip(tmp_path / "a.zip", {"a/1.png": b"x", "a/2.png": b"x"})
    read, folder = archives.read_files, tmp_path / "out"
    folder.mkdir()

    def reading(*arguments):
        monkeypatch.setattr(archives, "read_files", read)
        unpack(archive, folder)
        yield from read(*arguments)

    monkeypatch.setattr(archives, "read_files", reading)
    unpack(archive, folder)
    assert files_below(folder) == {"a/1.png", "a/2.png"}
