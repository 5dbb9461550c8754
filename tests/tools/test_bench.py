import json
import re
import signal
import subprocess

import pytest
import torch
from helpers import SMALL, play

from drama.device import find_dtype
from drama.sampling.packed import halves_weights
from tools.bench import __main__ as bench
from tools.bench import formats, programs, speed, text

NANO = {
    "config/train_shakespeare_char.py": "",
    "train.py": "for n in range(6): print(f'iter {n}: loss 4.0000, time {8 + n % 2}.00ms, mfu -100.00%')",
    "sample.py": "for n in range(10): print(f'to be\\n---------------')",
}


def small_models(monkeypatch):
    real = programs.train

    def train(out_dir, *config, **settings):
        return real(out_dir, *config, **{**SMALL, **settings})

    monkeypatch.setattr(programs, "train", train)


def in_this_process(function, *args, timeout=None):
    return function(*args)


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


def test_speeds_are_a_table_and_one_line_of_json_beside_nanogpt_s(call, corpus, monkeypatch):
    """The whole of it, with a small model in place of the default one and a nanoGPT that only speaks."""
    for name, code in NANO.items():
        (corpus / "nano" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / "nano" / name).write_text(code)
    small_models(monkeypatch)
    before = sorted((corpus / "data").iterdir())
    argv = ("train", "sample", "--rounds=1", "--against=nano", "--dtype=float32")
    status, out, err = call("bench.py", *argv)
    assert (status, err) == (0, "")
    figures = last_line(out)
    ours = {"train_ms", "train_memory_mb", "decode_s", "decode_one_s", "process_s"}
    limits = {"limit_train_ms", "limit_decode_s", "limit_decode_one_s", "matmul_tflops", "memory_gb_per_s"}
    assert ours | limits | {f"nanogpt_{name}" for name in ours} <= figures.keys()
    assert figures.pop("machine") in out
    memory = {name for name in figures if name.endswith("memory_mb")} - {"train_memory_mb"}
    assert len(memory) == 2  # of a nanoGPT that may be gone before it can be read
    ratio = pytest.approx(9 / figures["train_ms"], rel=1e-3)
    assert all(value > 0 for name, value in figures.items() if name not in memory)
    assert figures["nanogpt_train_ms"] == 9 and figures["ratio_train_ms"] == ratio
    assert all(label in out for name, label in bench.TABLE if name in ours) and "sampled words" not in out
    assert sorted((corpus / "data").iterdir()) == before  # nothing is left behind


def test_a_busy_program_beside_it_is_started_measured_against_and_ended(call, corpus, monkeypatch):
    small_models(monkeypatch)
    monkeypatch.setattr(speed, "CHARACTERS", 20)
    monkeypatch.setattr(speed, "in_a_process", in_this_process)
    started, popen = [], subprocess.Popen

    def watch(command, **kwargs):
        started.append(popen(command, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", watch)
    status, out, err = call("bench.py", "busy", "--rounds=1")
    figures = last_line(out)
    assert (status, err) == (0, "")
    assert {"laptop_ms", "busy_laptop_ms", "one_s", "busy_one_s"} <= figures.keys()
    assert "beside a busy program" in out
    loops = [process for process in started if "while" in process.args[-1]]
    assert [process.returncode for process in loops] == [-signal.SIGKILL]


def test_nanogpt_s_threads_wait_as_they_do_by_themselves(corpus, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "500")  # as tools.bench sets it for itself
    (corpus / "nano").mkdir()
    (corpus / "nano" / "sample.py").write_text("import os; print(os.environ.get('GOMP_SPINCOUNT'))")
    lines = programs.NanoGPT(corpus / "nano", corpus).sample().lines
    assert [line for _, line in lines] == ["None\n"]


def test_ratios_are_theirs_over_ours_and_figures_are_medians(capsys):
    measured = {"train_ms": [2, 1, 9], "nanogpt_train_ms": [8], "copied_percent": [0.0], "decode_s": []}
    bench.report(measured, "a machine")
    figures = last_line(capsys.readouterr().out)
    assert figures == {
        "machine": "a machine", "train_ms": 2, "nanogpt_train_ms": 8, "ratio_train_ms": 4, "copied_percent": 0
    }  # fmt: skip


def test_iteration_times_are_read_from_the_log_lines_of_both_projects():
    lines = [
        (0.1, "step 0: train loss 4.2, val loss 4.2\n"),
        (1, "iter 0: loss 4.2, time 30.23ms, mfu 12.50%\n"),
        (2, "iter 1: loss 4.1, time 8210.00ms, mfu -100.00%\n"),
    ]
    assert programs.Done(2, lines, 0).iteration_times() == [30.23, 8210.0]


def test_a_program_that_fails_is_named_with_its_last_words(tmp_path):
    with pytest.raises(OSError, match=r"-c import sys.* failed: no luck"):
        programs.python("-c", "import sys; print('well', flush=True); sys.exit('no luck')", folder=tmp_path)


def test_unknown_words_and_copied_stretches_are_counted(train, monkeypatch):
    train(max_iters=1, eval_interval=1)
    learned = play()[:27_175]  # the training split
    at = learned.index("\n\nLUCIO:\n", 1000) + 2
    speech = learned[at : learned.index(" ", at + 60)]
    said = speech + " # zzz zzz zzz zzz end\n---------------\n"
    lines = [(0, line) for line in said.splitlines(keepends=True)]
    seeds = []
    monkeypatch.setattr(
        text, "python", lambda *_, seed, **kw: seeds.append(seed) or programs.Done(1.0, lines, 0)
    )
    measured, _ = (bench.bench_text(bench.Settings(), None, None, n) for n in range(2))
    words = len(re.findall("[A-Za-z]+", speech)) + 4  # zzz, which is unknown; the last is not read
    assert measured["unknown_words_percent"] == pytest.approx([400 / words])
    assert measured["repeated_percent"] == pytest.approx([100 / (words - 2)])  # three times zzz, again
    windows = len(said.removesuffix("\n---------------\n")) - 49
    copied = len(speech + " ") - 49  # "#" is nowhere in the play
    assert measured["copied_percent"] == pytest.approx([100 * copied / windows])
    assert measured["val_repeated_percent"] == [text.repeated_percent([text.words(play()[27_175:])])]
    assert len(set(seeds)) == 2  # another text each round


def test_repeated_words_are_counted():
    assert text.repeated_percent([list("abcdabce")]) == pytest.approx(100 / 6)  # of six runs, abc again
    far = [f"word {n}" for n in range(text.NEAR)]
    assert text.repeated_percent([["a", "b", "c", *far[3:], "a", "b", "c"]]) > 0
    assert text.repeated_percent([["a", "b", "c", *far[2:], "a", "b", "c"]]) == 0
    assert text.repeated_percent([["a", "b"], ["a", "b"]]) == 0  # nothing between two texts, or in short ones


@pytest.mark.parametrize("argv, words", [
    (["train", "--against=."], "not a checkout of nanoGPT"), (["--rounds=0"], "rounds=0 is below 1"),
    (["fly"], "fly is none of train, sample"), (["--against=no/such/place"], "not a checkout"),
    (["--dtype=int8"], "dtype='int8' is none of"),
])  # fmt: skip
def test_a_wrong_request_gets_one_line(call, folder, argv, words):
    status, _, err = call("bench.py", *argv)
    assert status == 2 and err.count("\n") == 1 and words in err


def test_a_model_is_measured_in_every_format_that_takes_it(call, train, monkeypatch):
    train(out_dir="m")
    monkeypatch.setattr(formats, "in_a_process", in_this_process)
    status, out, err = call("bench.py", "formats", "--out_dir=m", "--rounds=1")
    figures = last_line(out)
    names = ["float32", "hf", "onnx", "gguf", "gguf float16"]
    assert ("bfloat16_ms" in figures) == (find_dtype("auto", torch.device("cpu")) == torch.bfloat16)
    assert ("float16_ms" in figures) == halves_weights()
    assert status == 0 and all(figures[f"{name}_ms"] > 0 for name in names), err
    assert figures["gguf float16_mb"] < figures["gguf_mb"] and figures["html_mb"] < figures["onnx_mb"]
    assert "hf, ms per character" in out and "limit_train_ms" not in figures
    train(out_dir="n", arch="modern")
    status, out, err = call("bench.py", "formats", "--out_dir=n", "--rounds=1")
    assert status == 0 and "gguf_ms" not in last_line(out)
    assert out.count("has no counterpart in llama.cpp") == 2  # in either number format
