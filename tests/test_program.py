"""Running as a program: how it starts, what stops it, and how it ends."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from drama.program import CLEAR, Stop, Terminated, optional, run_program

import pytest
import torch
from helpers import PROGRAMS, ROOT, SHORT, SMALL, flags, play, start

import prepare
import train_drama
from configurator import UserError

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@pytest.fixture
def end(monkeypatch, capsys):
    """end(main) runs it as program.py: (exit status, what it wrote on standard error)."""
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {signum: signal.getsignal(signum) for signum in signals}
    monkeypatch.setattr(sys, "argv", ["folder/program.py"])

    def run(main):
        with pytest.raises(SystemExit) as ended:
            run_program(main)
        return ended.value.code, capsys.readouterr().err

    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)


def failing(error):
    def main():
        raise error

    return main


def python(code, **kwargs):
    """What `python -c CODE` ends with, where the project can be imported."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, text=True, timeout=120, **{"capture_output": True, **kwargs})


# ---------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("result, status", [(None, 0), (0, 0), (143, 143)])
def test_the_exit_status_is_what_main_returns(end, result, status):
    assert end(lambda: result) == (status, "")


@pytest.mark.parametrize("error, status, message", [
    (UserError("give another"), 2, "give another"), (UserError("two\nlines"), 2, "two lines"),
    (OSError(errno.ENOSPC, "No space left", "a.pt"), 1, "a.pt: No space left"),
    (OSError(0, "no network"), 1, "no network"), (OSError("odd\nwords"), 1, "odd words"),
    (ConnectionResetError(), 1, "ConnectionResetError"),
    (FloatingPointError("the loss is nan"), 1, "the loss is nan"),
    (MemoryError("lower it"), 1, "lower it"), (MemoryError(), 1, "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory.\nTried 9 GB"), 1, "CUDA out of memory. Tried 9 GB"),
    (RuntimeError("MPS backend out of memory"), 1, "MPS backend out of memory"),
    (RuntimeError("the CPU can't allocate memory"), 1, "the CPU can't allocate memory"),
    (RuntimeError("the CPU has not enough memory"), 1, "the CPU has not enough memory"),
    (Terminated(), 143, "stopped"),
], ids=repr)  # fmt: skip
def test_what_is_no_bug_ends_in_one_line_and_its_status(end, error, status, message):
    assert end(failing(error)) == (status, f"program.py: {message}\n")


def test_ctrl_c_ends_in_a_line_below_the_terminal_s_and_a_reader_that_went_away_in_none(end):
    assert end(failing(KeyboardInterrupt())) == (130, "\nprogram.py: stopped\n")
    assert end(failing(BrokenPipeError())) == (1, "")


@pytest.mark.parametrize("kind, words", [
    (ValueError, "strange"), (KeyError, "x"), (RuntimeError, "mat1 and mat2 shapes cannot be multiplied"),
    (AssertionError, ""), (RecursionError, "maximum recursion depth exceeded"), (UnicodeError, "odd"),
])  # fmt: skip
@pytest.mark.parametrize("innermost", [["model.py"], ["drama", "dataset.py"], ["tools", "plot.py"]])
def test_a_bug_shows_its_whole_traceback_and_the_innermost_file_of_the_project(end, kind, words, innermost):
    def main():
        exec(compile("fail()", ROOT.joinpath(*innermost), "exec"), {"fail": library["fail"]})

    library = {"error": kind(words)}
    exec(compile("def fail():\n    raise error", "elsewhere/library.py", "exec"), library)
    status, err = end(main)
    *trace, last = err.splitlines()
    assert status == 1 and trace[0] == "Traceback (most recent call last):"
    assert trace[-2] == '  File "elsewhere/library.py", line 2, in fail' and trace[-1].startswith(
        kind.__name__
    )
    file = os.path.join(*innermost)
    assert last.startswith(
        f"program.py: this is a bug; if you edited {file}, the lines above show where it failed"
    )
    assert (ROOT / "CONTRIBUTING.md").exists() and "report it" in last and "CONTRIBUTING.md" in last


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("main", ["print('x' * 20)", "print('x' * 10**6)", "(print('help'), sys.exit())"])
def test_a_full_disk_behind_the_output_gets_one_line_and_status_1(main):
    code = f"import sys; from drama.program import run_program; run_program(lambda: {main})"
    with open("/dev/full", "w") as full:
        done = python(code, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "-c: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_console_lacks_is_printed_as_its_number_and_files_are_utf_8(encoding):
    code = (
        "import sys; from drama.program import run_program; run_program(lambda: print('\u4f60', file=sys.{}))"
    )
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    done = python(code.format("stderr"), env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "\\u4f60\n")
    done = python(code.format("stdout"), env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\u4f60\n", "")


# ---------------------------------------------------------------------------- someone's edit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data/drama and a model in m/."""
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    try:
        Path("play.txt").write_text(play(), encoding="utf-8")
        prepare.prepare(prepare.Settings(input="play.txt"))
        train_drama.train(train_drama.Settings(**SMALL, **SHORT, out_dir="m"))
    finally:
        os.chdir(before)
    return folder


EDITS = [
    (
        "train_drama.py",
        "x = x0 = self.dropout(x)",
        "x = x0 = self.droput(x)",
        "AttributeError: 'GPT' object has no",
    ),
    (
        "train_drama.py",
        "self.ln_f = norm(config)",
        "self.ln_f = norm(config.gpt)",
        "AttributeError: 'GPTConfig'",
    ),
    (
        "sample.py",
        "x = x0 = self.dropout(x)",
        "x = x0 = self.dropout(x)[..., 1:]",
        "RuntimeError: Given normalized",
    ),
    ("sample.py", "self.ln_f = norm(config)", "self.ln_f = norm(config, 2)", "TypeError: norm() takes 1 pos"),
]


@pytest.mark.parametrize("program, old, new, error", EDITS, ids=[f"{edit[0]} {edit[2]}" for edit in EDITS])
def test_an_edit_of_the_model_that_fails_shows_where(trained, clone, tmp_path, program, old, new, error):
    project = shutil.copytree(clone, tmp_path / "project")
    source = (project / "model.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    (project / "model.py").write_text(source.replace(old, new), encoding="utf-8")
    argv = flags(**SMALL, **SHORT, out_dir="edited") if program == "train_drama.py" else ["--out_dir=m"]
    process = start(trained, project / program, *argv)
    _, err = process.communicate(timeout=300)
    *trace, last = err.splitlines()
    assert process.returncode == 1 and trace[0] == "Traceback (most recent call last):"
    assert f'File "{project / "model.py"}", line ' in err and trace[-1].startswith(error)
    assert last.startswith(
        f"{program}: this is a bug; if you edited model.py, the lines above show where it failed"
    )


# ---------------------------------------------------------------------------- what stops it


@posix
def test_sigterm_is_raised_where_the_program_stands_so_that_it_cleans_up(end):
    cleaned = []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    assert end(main) == (143, "program.py: stopped\n") and cleaned


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_first_signal_is_noted_and_a_second_ends_at_once(end, name):
    noted, signum = [], getattr(signal, name)

    def main():
        with Stop() as stop:
            assert not stop
            os.kill(os.getpid(), signum)
            noted.append((bool(stop), stop.signum))
            os.kill(os.getpid(), signum)
            noted.append("gone on")

    assert end(main)[0] == 128 + signum and noted == [(True, signum)]


@posix
def test_a_closed_terminal_is_heard_once_but_not_under_nohup(end):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    ended = []  # as the default action would
    signal.signal(signal.SIGHUP, lambda *_: ended.append(True))
    with Stop() as stop:
        for _ in range(2):  # from the shell and from the kernel
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop and stop.signum == signal.SIGHUP and not ended
    os.kill(os.getpid(), signal.SIGHUP)
    assert ended


@posix
def test_a_program_in_the_background_of_a_script_does_not_hear_ctrl_c():
    code = (
        "import os, signal; from drama.program import Stop, run_program\n"
        "def main():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    with Stop() as stop:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        return 7 if stop else 0\n"
        "run_program(main)\n"
    )
    done = python(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------------- how it starts


def test_what_imports_a_program_keeps_its_own_ctrl_c_and_tracebacks():
    code = (
        "import signal, sys, drama.program\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "print(sys.excepthook is sys.__excepthook__, 'torch' in sys.modules)\n"
    )
    done = python(code)
    assert (done.stdout.split(), done.stderr) == (["True", "True", "False"], "")


@pytest.mark.parametrize("program", sorted(PROGRAMS.keys() - {"plot.py"}))  # which needs none to start
def test_a_missing_package_is_said_to_be_installed_with_pip(tmp_path, program):
    package = "numpy" if program == "prepare.py" else "torch"  # it needs no torch
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    path = [program] if (ROOT / program).exists() else ["-m", f"tools.{Path(program).stem}"]
    process = start(ROOT, *path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and not out and len(err.splitlines()) == 1
    is_folder = (ROOT / "tools" / Path(program).stem).is_dir()  # python -m tools.NAME runs its __main__.py
    name = Path(program).stem if is_folder else program
    assert err.startswith(f"{name}: ") and package in err
    assert err.endswith("; run pip install -r requirements.txt\n")


def test_a_required_package_that_is_missed_later_is_one_line_too(corpus, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)  # imported where byte pairs are used
    status, _, err = call("prepare.py", "--input=play.txt", "--tokenizer=gpt2")
    assert status in (1, 2) and len(err.splitlines()) == 1 and "tiktoken" in err and "pip install" in err


def test_an_optional_package_is_imported_or_said_to_be_installed_with_pip():
    assert optional("json") is json and optional("os.path") is os.path
    for name, package, asked in [
        ("no_such_package", "", "no_such_package"), ("no_such_package.part", "", "no_such_package"),
        ("json.no_such_part", "other", "other"),
    ]:  # fmt: skip
        with pytest.raises(UserError) as refused:
            optional(name, package)
        assert str(refused.value) == f"this needs {asked}: pip install {asked}"


def test_threads_that_wait_go_to_sleep_unless_the_person_said_otherwise(tmp_path):
    code = "import os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    own = ROOT / "tools" / "own-threads-test.py"
    own.write_text(f"from drama.program import run_program\n{code}\n")
    try:
        for given, expected in ({}, "500"), ({"GOMP_SPINCOUNT": "7"}, "7"):
            environ = {**os.environ, "PYTHONPATH": str(ROOT), **given}
            done = subprocess.run([sys.executable, own], capture_output=True, text=True, env=environ)
            assert done.stdout.split() == [expected, "False"], done.stderr
    finally:
        own.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_what_would_command_a_terminal_reaches_a_file_alone(tmp_path):
    said = "a\x1b[2Jb\x1b]0;title\x07\x9b2J\x7f\r\tc\n" + CLEAR + "d\n"
    code = f"from drama.program import run_program; run_program(lambda: print({said!r}, end=''))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    ours, theirs = os.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environ, check=True)
    shown = os.read(ours, 10_000).decode().replace("\r\n", "\n")
    assert shown == "a\ufffd[2Jb\ufffd]0;title\ufffd\ufffd2J\ufffd\ufffd\tc\n" + CLEAR + "d\n"
    with open(tmp_path / "out", "wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, env=environ, check=True)
    assert (tmp_path / "out").read_bytes().decode() == said
    os.close(ours)
    os.close(theirs)
