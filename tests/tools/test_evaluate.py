"""A model's loss on any text: the step line's number, and what a loop written by hand gives."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, flags, loaded, play, tiny_model

from drama import checkpoint
from drama.tokenizer import BPETokenizer, CharTokenizer
from tools.evaluate.__main__ import load as load_model
from tools.evaluate.losses import by_speaker, predict
from train_drama import Settings

TEXT = "LUCIO:\nGood day.\nSpeak.\n\nISABELLA:\nNo:\nnever.\n\nLUCIO:\nWell!\n"
PAIRS = [*(bytes([b]) for b in range(256)), b"LU", b"\n\n", b"\n\nI", b" day"]  # one goes across a boundary


def test_without_an_input_it_is_the_number_of_the_last_step_line(train, call):
    train(max_iters=20, eval_interval=20, dtype="float32")
    status, out, err = call("evaluate.py", "--dtype=float32")
    model = load_model("model", CPU)
    exact = loaded().evaluate_whole(model.model, model.model.config, CPU)
    assert (status, err) == (0, "")
    assert out.startswith(f"model: val loss {exact['val_loss']:.4f}, {exact['val_bits_per_char']:.4f} bits")
    assert float(re.search(r"loss ([\d.]+)", out)[1]) == pytest.approx(
        checkpoint.load("model/ckpt.pt")["val_loss"], abs=5e-5
    )


@pytest.mark.parametrize("n", [2, 5, 16, 17, 18, 24, 25, 33, 100])
@pytest.mark.parametrize("shape", [{}, dict(arch="modern"), dict(n_ensemble=2)])
def test_each_token_is_predicted_from_half_a_context_or_all_there_is(n, shape):
    model, ids = tiny_model(**shape), np.random.default_rng(0).integers(11, size=n)
    found, plain = (predict(model, ids, CPU, windows, 3) for windows in ("context", "plain"))
    block, begins = 16, []
    for i in range(1, n):  # what stands before token i in the first window that reaches it
        end = next(end for end in [*range(min(block, n - 1), n - 1, block // 2), n - 1] if end >= i)
        begins.append(max(0, end - block))
        for said, begin in ((found, begins[-1]), (plain, (i - 1) // block * block)):
            logits = model(torch.tensor(ids[begin:i])[None])[0][0, -1]
            expected = F.cross_entropy(logits, torch.tensor(ids[i]))
            top = logits.softmax(-1).topk(3)
            assert said[0][i - 1] == pytest.approx(expected.item(), abs=1e-5)
            assert said[1][i - 1] == pytest.approx(top.values.tolist(), abs=1e-5)
            assert said[2][i - 1].tolist() == top.indices.tolist()
        assert i - begins[-1] >= min(i, block // 2)


def test_plain_windows_are_those_of_the_validation_loss(corpus):
    data = loaded()
    model = tiny_model(vocab_size=data.tokenizer.vocab_size, block_size=32)
    ids = data.val.read(0, np.empty(len(data.val), dtype="<u2"))
    exact = data.evaluate_whole(model, Settings(block_size=32), CPU)
    assert predict(model, ids, CPU, "plain")[0].mean() == pytest.approx(exact["val_loss"], abs=1e-6)


class Even(torch.nn.Module):
    """Says that every token is as likely."""

    def __init__(self, tok):
        super().__init__()
        self.config = tiny_model(vocab_size=tok.vocab_size).config

    def forward(self, x, y):
        return torch.zeros(*x.shape, self.config.vocab_size), None


@pytest.mark.parametrize("tok", [CharTokenizer("".join(sorted(set(TEXT)))), BPETokenizer(PAIRS)])
def test_a_speech_s_tokens_are_its_speaker_s(tok):
    class One:
        model = Even(tok)

    One.tok = tok
    rows = by_speaker("\n\n" + TEXT, [One], CPU, "context")
    assert [row.name for row in rows] == ["", "LUCIO", "ISABELLA", "LUCIO"]
    assert [row.characters for row in rows] == [1, *map(len, re.split(r"(?<=\n\n)", TEXT))]
    tokens = [row.nats[0] / math.log(tok.vocab_size) for row in rows]
    assert sum(tokens) == pytest.approx(len(tok.encode("\n\n" + TEXT)) - 1)
    if tok.kind == "char":
        assert tokens == pytest.approx([row.characters for row in rows])


@pytest.fixture
def models(folder):
    """Two models, a and b; the second knows fewer characters."""
    for seed, (name, chars) in enumerate(dict(a=play() + "é", b=play()).items()):
        tok = CharTokenizer("".join(sorted(set(chars))))
        model = tiny_model(seed, vocab_size=tok.vocab_size)
        (folder / name).mkdir()
        checkpoint.save(folder / name / "ckpt.pt", checkpoint.model_state(model, tok, Settings()))
    return folder


def test_models_side_by_side_read_the_same_characters(call, models):
    (models / "one.txt").write_text(play(40) + "\nLUCIO:\nétéé’s\n", encoding="utf-8")
    (models / "two.txt").write_text(play(30, seed=1), encoding="utf-8")
    status, out, err = call("evaluate.py", *flags(out_dir="a,b", input="one.txt,two.txt", speakers=2))
    assert (status, err) == (0, "")
    share = 100 * 4 / (len(play(40) + play(30, seed=1)) + 20)
    assert (
        f"left out, since a model does not know them: 4 characters, {share:.1f}% of the text, 2 diff" in out
    )
    assert "('é' 3, '’' 1)" in out and "bits more than a needs; below 0 is better" in out
    lines = [line.split() for line in out.splitlines()]
    named = {
        line[0]: line[-4:] for line in lines[:-1] if len(line) >= 5 and re.fullmatch(r"[\d,]+", line[-4])
    }
    assert list(named)[:2] == ["one", "two"] and list(named)[-1] == "all" and len(named) == 5
    values = {name: [float(value.replace(",", "")) for value in row] for name, row in named.items()}
    n, a, b, difference = values["all"]
    assert n == values["one"][0] + values["two"][0]
    assert difference == pytest.approx(b - a, abs=1e-4)
    weighted = sum(values[name][0] * values[name][1] for name in ("one", "two")) / n
    assert a == pytest.approx(weighted, abs=1e-3)
    alone = call("evaluate.py", *flags(out_dir="a", input="two.txt"))[1]
    assert f"{values['two'][1]:.4f}" in alone


@pytest.mark.parametrize("argv, words", [
    (["--out_dir=nowhere"], "nowhere/ckpt.pt is missing"), (["--out_dir=,"], "names no model"),
    (["--input=none.txt"], "none.txt"), (["--input=other.txt"], "no character that the model knows"),
    (["--windows=odd"], "none of context, plain"), ([], "data/drama is not prepared"),
    (["--html=page.html"], "name it with --input"), (["--html=true"], "does not end in .html"),
    (["--input=other.txt", "--html=no/page.html"], "in a folder that does not exist"),
    (["--input=other.txt", "--html=there.html"], "is there already"),
    (["--input=other.txt", "--html=/proc/page.html"], "html='/proc/page.html'"),
])  # fmt: skip
def test_a_wrong_request_gets_one_line(call, models, argv, words):
    (models / "other.txt").write_text("你好" * 10, encoding="utf-8")
    (models / "there.html").write_text("mine")
    status, _, err = call("evaluate.py", *(["--out_dir=b"] if "out_dir" not in str(argv) else []), *argv)
    assert status == 2 and words in err and len(err.splitlines()) == 1
    assert (models / "there.html").read_text() == "mine" and not (models / "page.html").exists()
