import functools
import importlib
import json
import re
import subprocess
import sys
from collections import defaultdict

import pytest
from conftest import play

import bench


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


def test_a_benchmark_prints_a_table_and_one_line_of_json(clone):
    done = subprocess.run(
        [sys.executable, "prepare.py", "--input=play.txt"], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    before = sorted((clone / "data").iterdir())
    done = subprocess.run(
        [sys.executable, "bench.py", "prepare", "--rounds=1", "--text_mb=3"],
        cwd=clone, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = last_line(done.stdout)
    assert 0 < figures["encode_mb_per_s"] < figures["limit_encode_mb_per_s"] * 10
    assert figures["matmul_tflops"] > 0 and figures["memory_gb_per_s"] > 0 and figures["machine"]
    assert "prepare.py, characters, MB/s" in done.stdout and "training" not in done.stdout
    assert sorted((clone / "data").iterdir()) == before  # nothing is left behind


def test_ratios_are_theirs_over_ours_and_start_up_is_over_import_torch(capsys):
    found = {"train_ms": [2, 1, 9], "nanogpt_train_ms": [8], "nanogpt_train_bf16_ms": [6],
             "train_memory_mb": [100], "nanogpt_train_memory_mb": [150], "decode_s": [1],
             "nanogpt_decode_s": [80], "startup_s": [3], "import_torch_s": [2]}  # fmt: skip
    bench.report(found)
    figures = last_line(capsys.readouterr().out)
    assert figures["train_ms"] == 2  # the median
    assert (figures["train_ratio"], figures["train_ratio_bf16"], figures["memory_ratio"]) == (4, 3, 1.5)
    assert (figures["decode_ratio"], figures["startup_ratio"]) == (80, 1.5)


def test_iteration_times_are_read_from_the_log_lines_of_both_projects():
    lines = [
        (0.1, "step 0: train loss 4.2, val loss 4.2\n"),
        (1, "iter 0: loss 4.2, time 30.23ms, mfu 12.50%\n"),
        (2, "iter 1: loss 4.1, time 8210.00ms, mfu -100.00%\n"),
    ]
    assert bench.Run(2, lines, 0).iteration_times() == [30.23, 8210.0]


def test_a_program_that_fails_is_named_with_its_last_words(tmp_path):
    with pytest.raises(OSError, match=r"-c import sys.* failed: no luck"):
        bench.python(tmp_path, "-c", "import sys; print('well', flush=True); sys.exit('no luck')")


def test_unknown_words_and_copied_stretches_are_counted(train, monkeypatch):
    train(max_iters=1, eval_interval=1)
    learnt = play()[:27_175]  # the training split
    at = learnt.index("\n\nLUCIO:\n", 1000) + 2
    speech = learnt[at : learnt.index(" ", at + 60)]
    said = speech + " # zzz end\n---------------\n"
    lines = [(0, line) for line in said.splitlines(keepends=True)]
    monkeypatch.setattr(bench, "python", lambda *_: bench.Run(1.0, lines, 0))
    found = defaultdict(list)
    bench.bench_text(found, None, None, bench.Settings())
    words = len(re.findall("[A-Za-z]+", speech)) + 1  # zzz, which is unknown; the last is not read
    assert found["unknown_words_percent"] == pytest.approx([100 / words])
    windows = len(said.removesuffix("\n---------------\n")) - 49
    copied = len(speech + " ") - 49  # "#" is nowhere in the play
    assert found["copied_percent"] == pytest.approx([100 * copied / windows])


def test_what_bench_takes_away_is_there():
    for undo in bench.CHANGES.values():
        for target in re.findall(r"([a-z_]\w*(?:\.\w+)+) = ", undo):
            module, *names = target.split(".")
            functools.reduce(getattr, names, importlib.import_module(module))


@pytest.mark.parametrize("argv, words", [
    (["train", "--against=."], "not a checkout of nanoGPT"), (["--rounds=0"], "at least 1"),
    (["fly"], "fly is none of train, eval"), (["--against=no/such/place"], "not a checkout"),
])  # fmt: skip
def test_a_wrong_request_gets_one_line(call, argv, words):
    status, _, err = call("bench.py", *argv)
    assert status == 2 and err.count("\n") == 1 and words in err
