import contextlib
import errno
import os
import stat
import subprocess
import sys

import pytest
from helpers import ROOT, start

from configurator import UserError
from drama.disk import lock, read_json, working_folder, write_atomically

# ---------------------------------------------------------------------------- write_atomically


def fail(error):
    def failing(*_):
        raise error

    return failing


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, old, step, error):
    path = tmp_path / "file"
    if old:
        path.write_bytes(old)

    def write(f):
        f.write(b"new")
        if step == "write":
            raise error

    if step != "write":
        monkeypatch.setattr(os, step, fail(error))
    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", old)] * bool(old)


def test_the_whole_file_is_on_disk_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.replace

    def watched(fd):
        status = os.fstat(fd)
        done.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), rename(*names)))
    write_atomically(tmp_path / "file", lambda f: f.write(b"x" * 100_000))
    assert done == [100_000, "renamed", "folder"] and os.listdir(tmp_path) == ["file"]


# ---------------------------------------------------------------------------- read_json


@pytest.mark.parametrize("content, value", [
    ("{}", {}), ('{"a": [1, null]}', {"a": [1, None]}), ('{"\u4f60": "\\u4f60"}', {"\u4f60": "\u4f60"}),
])  # fmt: skip
def test_a_json_object_is_read(tmp_path, content, value):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content, words", [
    (b"", "is not JSON"), (b'{"a": 1', "is not JSON"), (b"\xff", "is not JSON"), (b"\0", "is not JSON"),
    (b"[" * 100_000, "is not JSON"), (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
    (b"[1]", "is not a JSON object"), (b"null", "is not a JSON object"), (b'"{}"', "is not a JSON object"),
], ids=lambda value: repr(value)[:20])  # fmt: skip
def test_anything_but_a_json_object_is_refused_by_its_name(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_json(path)
    assert str(refused.value) == f"{path} {words}"


def test_a_file_that_cannot_be_read_is_no_question_of_its_form(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(OSError):
            read_json(path)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not flushed there")
def test_a_file_system_that_refuses_to_flush_a_folder_is_used_and_one_that_fails_is_not(
    tmp_path, monkeypatch
):
    fsync = os.fsync

    def refusing(number):
        def flush(f):
            if stat.S_ISDIR(os.fstat(f).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(f)

        return flush

    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    write_atomically(tmp_path / "a", lambda f: f.write(b"whole"))
    assert (tmp_path / "a").read_bytes() == b"whole"
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="error"):
        write_atomically(tmp_path / "a", lambda f: f.write(b"other"))


def test_a_working_folder_is_one_s_own_and_empty_and_goes_away(tmp_path):
    path = tmp_path / "deep/.work"
    (path / "left").mkdir(parents=True)
    (path / "left/half").write_text("by a program that was killed")
    (path / "half").write_text("the same")
    for error in (None, ZeroDivisionError):
        with pytest.raises(error) if error else contextlib.nullcontext(), working_folder(path, "busy") as own:
            assert os.listdir(own) == [".lock"]
            with pytest.raises(UserError, match="busy"), working_folder(path, "busy"):
                pytest.fail("two of them in one folder")
            (own / "new").mkdir()
            if error:
                raise error
        assert not path.exists()


# ---------------------------------------------------------------------------- lock

HOLD = """
import sys
from pathlib import Path
from drama.disk import lock, read_json, working_folder, write_atomically
with lock(Path.cwd(), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_until_its_process_ends_however_it_ends(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for end in ("killed", "closed"):
        process = start(tmp_path, "-c", HOLD, env=environ, stdin=subprocess.PIPE)
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="busy"),
            lock(tmp_path, "busy"),
        ):
            pytest.fail("two of them in one folder")
        process.kill() if end == "killed" else process.stdin.close()
        process.wait(120)
        with lock(tmp_path, "busy"):
            pass


def test_a_lock_is_released_after_use_and_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock(tmp_path, "busy"):
            with pytest.raises(UserError, match="busy"), lock(tmp_path, "busy"):
                pytest.fail("two of them in one folder")
            raise ZeroDivisionError


@pytest.mark.skipif(sys.platform == "win32", reason="locks are fcntl's")
def test_a_disk_that_has_no_locks_is_used_without(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", fail(OSError(errno.ENOLCK, "No locks available")))
    entered = []
    with lock(tmp_path, "busy"):
        entered.append(True)
    assert entered


def test_what_a_killed_training_left_half_written_is_removed_by_the_next_alone(tmp_path):
    (tmp_path / ".last.pt.tmp").write_text("half")
    (tmp_path / "last.pt").write_text("whole")
    with lock(tmp_path, "busy"):
        assert sorted(os.listdir(tmp_path)) == [".lock", "last.pt"]
        (tmp_path / ".last.pt.tmp").write_text("being written")
        with pytest.raises(UserError), lock(tmp_path, "busy"):
            pass
        assert (tmp_path / ".last.pt.tmp").exists()
