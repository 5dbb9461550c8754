"""The README's way through the project, as a person walks it: in a fresh copy, from its own words."""

import dataclasses
import json
import os
import re
import shlex
import signal
import time
import typing
from pathlib import Path

import pytest
from helpers import PROGRAMS, ROOT, flags, start

from configurator import help_text

QUICK = dict(n_layer=1, n_head=2, n_embd=32, block_size=32, batch_size=4)
QUICK = flags(**QUICK, max_iters=30, eval_interval=10, minutes=0)


def readme_blocks(name):
    """The code blocks of a README, each as its command lines, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    return [block.replace("\\\n", " ").splitlines() for block in blocks]


def run(place, *command, **kwargs):
    process = start(place, *command, **kwargs)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def test_both_readmes_give_the_same_commands_but_for_a_chinese_play():
    english, chinese = readme_blocks("README.md"), readme_blocks("README.zh-CN.md")
    assert [block for block in chinese if block not in english] == [chinese_play()]
    assert [block for block in chinese if block in english] == english and len(english) > 5


def chinese_play():
    (block,) = (b for b in readme_blocks("README.zh-CN.md") if any("罗密欧" in line for line in b))
    return block


def test_the_chinese_readme_s_way_through_a_chinese_play(clone):
    """Its own words, with a tiny model and few iterations."""
    for line in chinese_play():
        program, *argv = shlex.split(line)
        status, out, err = run(clone, *argv, *(QUICK if "train_drama.py" in argv else ()))
        assert (program, status) == ("python", 0) and re.fullmatch(UNENDED if "--cast" in line else "", err)
        if "--cast" in line:
            assert re.match(r"(罗密欧|朱丽叶)：\n", out)
    assert json.dumps("朱丽叶") in (clone / "html/drama.html").read_text("utf-8")


def test_the_readme_s_python_predicts_and_writes(train):
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")]
    code, chinese = (re.search(r"```python\n(.*?)```", text, re.DOTALL)[1] for text in texts)
    train(max_iters=2)
    shown = "print(type(model).__name__, model.training, logits.shape == (1, 1, tok.vocab_size))"
    status, out, err = run(".", "-c", code + shown, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (status, err) == (0, "") and code == chinese and out.startswith("LUCIO:\n")
    assert out.endswith("\nGPT False True\n") and len(out) == len("LUCIO:\n\nGPT False True\n") + 200


def test_the_first_command_of_the_readme_ends_in_dialogue(clone):
    """Its own words, with a tiny model and few iterations; the real corpus, fetched by the script."""
    (*place, install, training, sampling), (testing,) = readme_blocks("README.md")[:2]
    assert place == ["python3 -m venv .venv", "source .venv/bin/activate"]
    assert install == "pip install -r requirements.txt" and training.endswith("--minutes=10")
    assert testing == "pip install -r requirements-dev.txt && python -m pytest"
    status, out, err = run(clone, *training.split()[1:], *QUICK)
    if "pip could not fetch" in err:
        pytest.skip(err)
    assert (status, err) == (0, "")
    assert re.search(r"^iter 30: loss \d\.\d{4}, time \d+\.\d\dms, mfu \d+\.\d\d%", out, re.MULTILINE)
    assert re.search(r"^step 30: train loss \d\.\d{4}, val loss \d\.\d{4}", out, re.MULTILINE)
    assert "sample.py" in out.splitlines()[-1]
    status, out, err = run(clone, "sample.py", re.search(r'--start="(.*)"', sampling).expand(r"--start=\1"))
    assert (status, err) == (0, "") and out.count("LUCIO:") >= 10 and out.count("\n---------------\n") == 10


def test_a_person_s_own_plays_from_text_to_dialogue(clone):
    (clone / "我的戏.txt").write_text(
        "罗密欧：\n我爱你，朱丽叶！\n\n朱丽叶：\n你是谁？\n\n" * 150, encoding="utf-8"
    )
    status, out, err = run(clone, "prepare.py", "--input=我的戏.txt", "--dataset=mine")
    assert (status, err) == (0, "") and "training tokens" in out
    status, out, err = run(clone, "train_drama.py", "--dataset=mine", "--out_dir=model/mine", *QUICK)
    assert (status, err) == (0, "")
    status, out, err = run(clone, "sample.py", "--out_dir=model/mine", "--start=朱丽叶：", "--num_samples=2")
    assert (status, err) == (0, "") and out.startswith("朱丽叶：")
    status, out, err = run(clone, "sample.py", "--out_dir=model/mine", "--start=Romeo")
    assert status == 2 and "'R'" in err and len(err.splitlines()) == 1


def test_a_model_of_byte_pairs_reads_and_writes_any_text(clone):
    pytest.importorskip("rustbpe")
    command = ("prepare.py", "--input=play.txt", "--dataset=pairs", "--tokenizer=bpe", "--vocab_size=300")
    status, out, err = run(clone, *command)
    assert (status, err) == (0, "") and "300 different tokens" in out
    status, out, err = run(clone, "train_drama.py", "--dataset=pairs", "--out_dir=model/pairs", *QUICK)
    assert (status, err) == (0, "")
    loss, bits = re.search(r"step 30: .*val loss (\d\.\d+), (\d\.\d+) bits per character", out).groups()
    assert float(bits) < float(loss) / 0.6931  # a token is several characters
    status, out, err = run(clone, "sample.py", "--out_dir=model/pairs", "--start=戏 😀", "--num_samples=2")
    assert (status, err) == (0, "") and out.startswith("戏 😀") and out.count("\n---------------\n") == 2
    clash = ("prepare.py", "--input=play.txt", "--dataset=pairs")  # the same text in another vocabulary
    assert run(clone, *clash)[0] == 0
    command = ("train_drama.py", "--dataset=pairs", "--out_dir=model/pairs", *QUICK, "--max_iters=40")
    status, _, err = run(clone, *command)
    assert status == 2 and "the text in data/pairs" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_goes_on(clone, signum):
    out_dir = f"--out_dir=model/{signum.name}"
    run(clone, "prepare.py", "--input=play.txt", "--dataset=short")
    command = ["train_drama.py", "--dataset=short", out_dir, *QUICK, "--max_iters=100000", "--log_interval=1"]
    process = start(clone, *command)
    for line in process.stdout:
        if line.startswith("iter 12:"):
            break
    process.send_signal(signum)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signum and err == ""
    at = int(re.search(r"stopped before iteration (\d+) and saved", out)[1])
    status, out, err = run(clone, *command[:-2], f"--max_iters={at + 3}")
    assert (status, err) == (0, "") and f"continuing at iteration {at}" in out


@pytest.fixture
def stand_in(tmp_path):
    """stand_in("NAME.py", code): the environment of programs that find this module before any other."""

    def make(name, code):
        (tmp_path / name).write_text(code)
        return {**os.environ, "PYTHONPATH": str(tmp_path)}

    return make


WRITING = """
import os, time
def fsync(file):
    print("writing", flush=True)
    time.sleep(600)
os.fsync = fsync
"""


def test_ctrl_c_while_the_corpus_is_written_leaves_nothing(clone, stand_in):
    environ = stand_in("sitecustomize.py", WRITING)
    process = start(clone, "prepare.py", "--input=play.txt", "--dataset=written", env=environ)
    assert "writing\n" in iter(process.stdout.readline, "")
    assert list(clone.glob("data/.written.writing/new/train.bin"))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "prepare.py: stopped\n")
    assert not [name for name in os.listdir(clone / "data") if "written" in name]


IMPORTED = """
import contextlib, time
print("importing", flush=True)
with contextlib.suppress(BaseException):  # PyTorch's C++ code loses an exception now and then, too
    time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [
    ("train_drama.py", "--out_dir=early"), ("sample.py", "--out_dir=early"), ("-m", "tools.app"),
])  # fmt: skip
def test_ctrl_c_while_a_program_starts_is_no_traceback(clone, stand_in, command, signum):
    process = start(clone, *command, env=stand_in("torch.py", IMPORTED))
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (-signum, "") and not (clone / "early").exists()


FETCHING = """
import os, pathlib, time
pathlib.Path("pid").write_text(f"{os.getpid()}\\n")
time.sleep(600)
"""


def test_ctrl_c_while_the_corpus_is_fetched_leaves_nothing(clone, stand_in):
    process = start(clone, "prepare.py", "--dataset=fetched", env=stand_in("pip.py", FETCHING))
    pid = clone / "pid"
    while process.poll() is None and not (pid.exists() and pid.read_text().endswith("\n")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip() == "prepare.py: stopped"
    assert not (clone / "data/fetched").exists()
    with pytest.raises(ProcessLookupError):  # nor does pip go on
        for _ in range(6000):  # as long as the system takes to bury it
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.01)


def test_ctrl_c_while_a_text_is_written_ends_in_one_line(clone):
    run(clone, "prepare.py", "--input=play.txt", "--dataset=short")
    run(clone, "train_drama.py", "--dataset=short", "--out_dir=model/sampled", *QUICK)
    process = start(clone, "sample.py", "--out_dir=model/sampled", "--num_samples=1000000")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip() == "sample.py: stopped"


UNENDED = r"(stopped after [\d,]+ tokens, before the last speech ended\n)?"


def test_the_required_packages_alone_are_enough(clone, stand_in):
    wanted = (ROOT / "requirements-dev.txt").read_text().split()
    others = {re.split(r"[>=]", line)[0] for line in wanted} - {"-r", "requirements.txt", "pytest", "ruff"}
    assert {"matplotlib", "playwright", "wandb"} < others
    hide = f"import sys\nfor name in {sorted(others)}: sys.modules[name] = None\n"
    environ = stand_in("sitecustomize.py", hide)
    sampling = ["sample.py", "--out_dir=model/alone", "--cast=LUCIO", "--turns=1", "--num_samples=2"]
    for command, noted in (
        (["prepare.py", "--input=play.txt", "--dataset=alone"], ""),
        (["train_drama.py", "--dataset=alone", "--out_dir=model/alone", *QUICK], ""),
        ([*sampling, "--format=json"], UNENDED),  # as a model of thirty iterations may
    ):
        status, out, err = run(clone, *command, env=environ)
        assert status == 0 and re.fullmatch(noted, err) and out
        assert ("pip install matplotlib" in out) == (command[0] == "train_drama.py")


COMMANDS = {name: name if (ROOT / name).exists() else f"-m tools.{Path(name).stem}" for name in PROGRAMS}


def test_the_scripts_import_without_running(clone):
    names = ", ".join(module.__name__ for module in PROGRAMS.values())
    status, out, err = run(clone, "-c", f"import {names}; print(train_drama.Settings().n_layer)")
    assert (status, out, err) == (0, "6\n", "")


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_every_choice_of_a_setting_is_in_its_help(program):
    text = help_text(program.Settings)
    sections = re.split(r"\n  --", text)
    for field in dataclasses.fields(program.Settings):
        (own,) = (part for part in sections if part.startswith(f"{field.name}="))
        if typing.get_origin(field.type) is typing.Literal:
            for choice in typing.get_args(field.type):
                assert re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", own), (field.name, choice)


@pytest.mark.parametrize("command", COMMANDS.values())
def test_help_needs_no_data_and_no_model(clone, command):
    status, out, err = run(clone, *command.split(), "--help")
    assert (status, err) == (0, "") and out.startswith(f"python {command}")
