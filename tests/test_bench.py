import json
import re

import pytest
from helpers import CPU, SHORT, SMALL, flags, play, start

from drama import checkpoint
from tools import bench

NANO = {
    "config/train_shakespeare_char.py": "",
    "train.py": "for n in range(6): print(f'iter {n}: loss 4.0000, time {8 + n % 2}.00ms, mfu -100.00%')",
    "sample.py": "for n in range(10): print(f'to be\\n---------------')",
}


def last_line(text):
    return json.loads(text.strip().splitlines()[-1])


def test_speeds_are_a_table_and_one_line_of_json_beside_nanogpt_s(call, corpus, monkeypatch):
    """The whole of it, with a small model in place of the default one and a nanoGPT that only speaks."""
    for name, code in NANO.items():
        (corpus / "nano" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / "nano" / name).write_text(code)
    real = bench.train
    monkeypatch.setattr(bench, "train", lambda out_dir, **settings: real(out_dir, **{**SMALL, **settings}))
    before = sorted((corpus / "data").iterdir())
    argv = ("train", "sample", "--rounds=2", "--against=nano", "--dtype=float32")
    status, out, err = call("bench.py", *argv)
    assert (status, err) == (0, "")
    figures = last_line(out)
    ours = {"train_ms", "train_memory_mb", "decode_s", "decode_one_s", "process_s"}
    limits = {"limit_train_ms", "limit_decode_s", "limit_decode_one_s", "matmul_tflops", "memory_gb_per_s"}
    assert ours | limits | {f"nanogpt_{name}" for name in ours} <= figures.keys()
    assert figures.pop("machine") in out and all(value > 0 for value in figures.values())
    assert figures["nanogpt_train_ms"] == 9 and figures["ratio_train_ms"] == pytest.approx(
        9 / figures["train_ms"], abs=1e-3
    )
    assert all(label in out for name, label in bench.TABLE if name in ours) and "sampled words" not in out
    assert sorted((corpus / "data").iterdir()) == before  # nothing is left behind


def test_what_a_model_writes_is_measured_by_the_program_itself(clone):
    """The model spells one word, which is not in the play: "kgin"."""
    for command in (
        ["prepare.py", "--input=play.txt", "--dataset=short"],
        ["train_drama.py", *flags(**{**SMALL, **SHORT, "n_embd": 48, "dataset": "short", "out_dir": "model/one"}),
         "--arch=modern"],
        ["-m", "tools.bench", "text", "--rounds=1", "--out_dir=model/one"],
    ):  # fmt: skip
        if "text" in command:
            spell(clone / "model/one/ckpt.pt", " kgin")
        process = start(clone, *command)
        out, err = process.communicate(timeout=600)
        assert (process.returncode, err) == (0, "")
    figures = last_line(out)
    assert (figures["unknown_words_percent"], figures["copied_percent"]) == (100, 0)
    assert figures["characters_per_s"] > 0 and "training" not in out
