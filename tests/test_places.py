"""Where the programs run: packages that are broken or missing, older Pythons, threads, notebooks, proxies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from drama.program import optional, run_program

import pytest
from helpers import ROOT, SHORT, SMALL, flags

from configurator import UserError, help_text
from drama.training.logs import require_packages
from train_drama import Settings


@pytest.mark.parametrize("code, words", [
    ("import needed_by_it", "broken is installed but cannot be imported: No module named 'needed_by_it'"),
    ("raise ValueError('bad proxy')", "broken is installed but cannot be imported (ValueError: bad proxy)"),
    ("from math import no_such_name", "installed but cannot be imported (ImportError: cannot import name"),
])  # fmt: skip
def test_a_package_that_is_installed_but_fails_shows_the_real_reason(tmp_path, monkeypatch, code, words):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refused:
        optional("broken")
    assert words in str(refused.value) and "pip install" not in str(refused.value)


def test_a_notebook_that_imports_the_project_gets_its_threads_settings():
    code = "import os, train_drama; print(os.environ['GOMP_SPINCOUNT'])"
    environ = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environ |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("500\n", 0), done.stderr


def test_a_package_that_is_not_installed_is_named_with_its_command():
    with pytest.raises(UserError, match=r"^this needs nowhere: pip install nowhere$"):
        optional("nowhere.part")
    with pytest.raises(UserError, match="pip install other-name"):
        optional("nowhere", "other-name")


def old_pythons():
    found = [shutil.which(f"python3.{minor}") for minor in (8, 9)]
    found += map(str, Path.home().glob(".pyenv/versions/3.[89].*/bin/python3"))
    return [
        path
        for path in filter(None, found)
        if not subprocess.run([path, "-c", ""], capture_output=True).returncode
    ]


@pytest.mark.parametrize(
    "program", [["train_drama.py"], ["sample.py"], ["prepare.py"], ["-m", "tools.export"]]
)
def test_an_older_python_is_told_in_one_line(program):
    if not (pythons := old_pythons()):
        pytest.skip("no Python 3.8 or 3.9 here")
    for python in pythons:
        done = subprocess.run([python, "-B", *program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("this needs Python 3.10 or newer, and this is Python 3.")
        assert done.stderr.count("\n") == 1


def test_wandb_without_an_account_is_refused_before_anything_is_written(train, corpus, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(corpus))  # no .netrc
    monkeypatch.setenv("NETRC", str(corpus / "netrc"))
    with pytest.raises(UserError, match="wandb login"):
        train(out_dir="m", wandb=True)
    wandb.teardown()  # or it would remember the mode
    assert not Path("m").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_packages(Settings(wandb=True))


def test_wandb_s_project_and_run_are_named_by_the_person_s_environment(train, monkeypatch):
    wandb = pytest.importorskip("wandb")
    runs, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kwargs: (runs.append(init(**kwargs)), runs[-1])[1])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(out_dir="a", wandb=True, max_iters=0)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "first")
    wandb.teardown()  # it reads its environment once
    train(out_dir="b", wandb=True, max_iters=0)
    assert [run.project for run in runs] == ["drama", "mine"] and runs[1].settings.run_name == "first"
    shown = help_text(Settings)
    assert all(name in shown for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_MODE"))


def test_a_training_runs_in_a_thread_and_leaves_the_signals_alone(train):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    results = []
    thread = threading.Thread(target=lambda: results.append(train(out_dir="m")))
    thread.start()
    thread.join()
    assert results[0]["iteration"] == 21
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_program_that_a_notebook_runs_leaves_its_signals_as_they_were():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit):
        run_program(lambda: 0)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


# As `%run` in IPython: builtins tell of it, and the program's file is that of __main__.
IPYTHON = """
import builtins, signal, sys
builtins.__IPYTHON__ = True
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.excepthook
sys.argv = ["prepare.py", "--help"]
__file__ = sys.argv[0]
try:
    exec(compile(open(__file__).read(), __file__, "exec"))
except SystemExit:
    pass
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.excepthook)
"""


def test_run_in_ipython_leaves_no_handler():
    done = subprocess.run([sys.executable, "-c", IPYTHON], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def notebook_cells(clone) -> list[str]:
    """Its code, cell by cell, with a small training of the small play."""
    cells = json.loads((clone / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    small = ", ".join(map(repr, flags(**SMALL, **SHORT, dataset="notebook", out_dir="model/notebook")))
    for theirs, ours in {
        "prepare.Settings()": "prepare.Settings(input='play.txt', dataset='notebook')",
        '*small, *short, "--out_dir=model/notebook"': small,
    }.items():
        assert theirs in "".join(code)
        code = [cell.replace(theirs, ours) for cell in code]
    return code


def test_the_notebook_runs_in_docs_from_plays_to_a_page(clone):
    pytest.importorskip("matplotlib")
    cells = notebook_cells(clone)
    code = "\n".join([*cells, cells[-1]])  # the last cell once more, as people do
    done = subprocess.run([sys.executable, "-c", code], cwd=clone / "docs", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'iteration': 21" in done.stdout
    assert done.stdout.count("LUCIO:") + done.stdout.count("ISABELLA:") >= 4
    assert (clone / "model/notebook/loss.png").read_bytes().startswith(b"\x89PNG")
    assert "drama.html" in done.stdout and (clone / "model/notebook/page/drama.html").exists()
    assert not {"data", "model", "html"} & set(os.listdir(clone / "docs"))


def test_the_notebook_says_in_one_line_where_to_go(clone, tmp_path):
    command = [sys.executable, "-c", "\n".join(notebook_cells(clone))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "train_drama.py" in done.stderr


def test_the_notebook_shows_what_it_makes_and_how_long_it_takes():
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    assert "minutes" in "".join(cells[0]["source"])
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    (picture,) = (output["data"]["image/png"] for output in outputs if "data" in output)
    printed = ["".join(output["text"]) for output in outputs if "text" in output]
    assert len(picture) * 3 / 4 < 100_000
    assert any(re.search("^LUCIO:", out, re.M) and re.search("^ISABELLA:", out, re.M) for out in printed)
    assert "drama.html" in printed[-1] and not any(out["output_type"] == "error" for out in outputs)
    assert not re.search(r"/(home|root|tmp|work|opt|Users)/", "".join(printed))  # of the computer that ran it
